"""Kinds of backbones: their settings, shapes and costs, without torch."""
