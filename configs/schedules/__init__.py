"""Kinds of schedules: how the learning rate falls."""
