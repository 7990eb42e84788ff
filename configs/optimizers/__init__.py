"""Kinds of optimisers of the network."""
