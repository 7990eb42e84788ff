"""Random changes of an image: pure functions of (seed, position)."""
