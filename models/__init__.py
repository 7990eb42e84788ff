"""Backbones, and the class-sharded head. Knows no data and no cluster."""
