"""Kinds of protocols: what a network is evaluated by."""
