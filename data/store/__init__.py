"""Bytes of shards: read from this node's disk, to which those of remote datasets are fetched and
where they are cached."""
