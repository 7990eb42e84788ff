"""The class-sharded head."""
