"""Which samples make a batch: pure functions of (seed, position)."""
