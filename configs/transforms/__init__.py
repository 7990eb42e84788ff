"""Kinds of transforms: random changes of an image."""
