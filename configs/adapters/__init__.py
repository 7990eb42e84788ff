"""Adapters, a file each."""
