"""Many images as embeddings in a file, and the nearest of them to a query."""
