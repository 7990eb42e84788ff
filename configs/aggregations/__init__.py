"""Kinds of aggregations: how the embeddings of several images of a person become one."""
