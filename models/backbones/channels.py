"""The order of the colour channels that a published network takes: most are trained on RGB images,
some on BGR ones, as OpenCV reads them. Ours take RGB."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

Channels = Literal["rgb", "bgr"]

_ADAFACE = "model.input_layer."
"""Start of names in AdaFace's own checkpoints, whose networks take BGR (its README)."""


def channels_of(file: Path, names: Collection[str]) -> Channels:
    """The order of channels that the network in a file of weights takes: BGR for AdaFace's own
    checkpoints, told by the names of their weights; what CVLface's settings beside the file say; in
    any other case RGB."""
    if any(name.startswith(_ADAFACE) for name in names):
        return "bgr"
    said = _settings(file.with_suffix(".yaml")).get("color_space")
    if said is None:
        inner = _settings(file.with_name("config.json")).get("conf")
        said = inner.get("color_space") if isinstance(inner, dict) else None
    return "bgr" if str(said).lower() == "bgr" else "rgb"


def in_rgb(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The weights of a network that takes BGR, changed to give the same for RGB: the first of them
    in the order of the network's `names` is a convolution over the three channels of the image."""
    for name in names:
        weight = weights.get(name)
        if weight is not None and weight.ndim == 4 and weight.shape[1] == 3:
            return {**weights, name: weight.flip(1)}
    return dict(weights)


def _settings(file: Path) -> dict[str, Any]:
    """What a small YAML or JSON file says; nothing where there is none, or it cannot be read."""
    try:
        text = file.read_bytes()
        read = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
