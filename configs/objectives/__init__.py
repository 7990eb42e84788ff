"""Kinds of objectives: what is optimised."""
