"""Kinds of margins; the docstring of each says when to use it."""
