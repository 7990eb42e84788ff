"""Embedding images and scoring them by a protocol."""
