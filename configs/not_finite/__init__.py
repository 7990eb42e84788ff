"""The kinds of what a run does where a step gives no finite numbers."""
