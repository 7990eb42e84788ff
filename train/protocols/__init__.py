"""Protocols: which images a network is evaluated on, and what their embeddings are worth."""
