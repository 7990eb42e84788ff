"""Batches on the device: decoding and the loader."""
