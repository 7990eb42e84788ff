"""Sources to a dataset: which images of whom are written, what is done to each, and the report."""
