"""The loop, the engine, checkpoints, tracking, evaluation and the command line."""
