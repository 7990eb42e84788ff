"""Checkpoints: layout, state, writer, head shards."""
