"""Shard bytes, near or far: memory-mapped, cached on the node, fetched from a store."""
