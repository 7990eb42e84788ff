"""The data that a run reads, as each start of its workers records it."""

from typing import Any

from manyfaces.data.dataset.dataset import Dataset

_KEYS = {"path", "fingerprint", "images", "identities", "shards", "bytes", "share"}


def dataset_facts(dataset: Dataset) -> list[dict[str, Any]]:
    """What tells each part of a dataset from others, without credentials, its size and its share of
    the samples."""
    return [
        {
            "path": part.where,
            "fingerprint": part.manifest.fingerprint,
            "images": part.manifest.num_images,
            "identities": part.manifest.num_identities,
            "shards": len(part.manifest.shards),
            "bytes": sum(shard.bytes for shard in part.manifest.shards),
            "share": float(share),
        }
        for part, share in zip(dataset.parts, dataset.shares, strict=True)
    ]


def known_datasets(told: Any) -> list[dict[str, Any]]:
    """Those of a start's event; one that does not say what `dataset_facts` does is left out."""
    listed = told if isinstance(told, list) else []
    return [facts for facts in listed if isinstance(facts, dict) and facts.keys() >= _KEYS]
