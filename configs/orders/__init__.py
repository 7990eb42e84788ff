"""Kinds of orders: which samples make a batch."""
