"""The tree as dotted keys, and which of them make two runs the same experiment."""

from typing import Any

from manyfaces.configs.schema import Config


def identity(config: Config) -> dict[str, Any]:
    """What makes two runs the same experiment, by dotted key: a run name that exists with another
    value is refused. Where class rows live changes no number."""
    data = {"image_px", "order", "images_per_identity", "window_shards", "augment"}
    weights = {
        f"data.mixture[{number}].weight": part.weight
        for number, part in enumerate(config.data.mixture)
    }
    included: Any = {"model": True, "head": True, "train": True, "run": {"seed"}, "data": data}
    return flatten(config.model_dump(include=included, exclude={"head": {"placement"}})) | weights


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
