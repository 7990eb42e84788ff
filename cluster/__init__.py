"""Where workers run: Ray Train, torchrun or one process, and Ray Jobs. Knows no model and no
data."""
