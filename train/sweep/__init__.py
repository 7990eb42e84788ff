"""Sweeps: the same run with every combination of some values, compared by one metric."""
