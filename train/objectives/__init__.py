"""Objectives: what is optimised, one file each."""
