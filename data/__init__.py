"""Shards on disk to batches on the device. Knows no model and no cluster."""
