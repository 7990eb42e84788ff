"""Whether every node of a cluster can do its part of a run, asked before one starts."""
