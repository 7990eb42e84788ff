"""Random changes of images: their numbers are pure functions of (seed, position)."""
