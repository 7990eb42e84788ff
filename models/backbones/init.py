"""Weights to start a fresh run from (`model.init`): files of ours, of InsightFace, of AdaFace, of
CVLface, of timm and of Hugging Face."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.backbone import Backbone
from manyfaces.models.backbones.channels import Channels, channels_of, in_rgb
from manyfaces.models.backbones.weights import read_weights, weights_file

_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "net.")
"""What training programs and wrappers put before the names of a network's weights."""
ADAPTER_NAME = ".lora_"
"""Part of the names of adapters' weights."""
COUNTER = "num_batches_tracked"
"""Part of the names of counters, which decide nothing."""
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Matched:
    """Which weights of a network a file had, by the network's names."""

    path: Path
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    """Weights of the network that the file does not have: they keep their random start."""
    unused: tuple[str, ...]
    """Weights of the file that the network does not have."""
    other_shape: tuple[str, ...]
    """Weights that both have, in different shapes, with both shapes: they too keep their start."""
    resized: tuple[str, ...] = ()
    """Weights among `matched` that were interpolated from another shape, with both shapes."""
    read: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """The weights `matched` as the file has them, before any interpolation."""

    @property
    def num_weights(self) -> int:
        """Number of weights that the network has."""
        return len(self.matched) + len(self.missing) + len(self.other_shape)

    def rows(self) -> list[tuple[str, int, str]]:
        """Rows of a table: what is counted, how many there are, and the first of their names."""
        told = [
            ("matched", len(self.matched), _first(self.matched)),
            ("missing in the file", len(self.missing), _first(self.missing)),
            ("not used of the file", len(self.unused), _first(self.unused)),
            ("of another shape", len(self.other_shape), _first(self.other_shape)),
        ]
        if self.resized:
            told.append(("matched, interpolated", len(self.resized), _first(self.resized)))
        return told

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {what}" for what, number, _ in self.rows()[1:])
        return f"{self.path}: {len(self.matched)} of {self.num_weights} weights matched; {counts}"


def load_initial(network: nn.Module, path: Path, channels: Channels | None = None) -> Matched:
    """Copy the weights of a file into `network`, by name, where the shapes are equal.

    `path` is a file that ends in `.safetensors` or in one of `TORCH_ENDINGS`, or a folder, of which
    `weights_file` gives the file. Prefixes such as `module.` are stripped, and where the network
    knows how others name its weights (`Backbone.our_names`) their names are translated; where it
    can interpolate one of another shape (`Backbone.resized`) it does. A network that was trained on
    BGR images is changed to take RGB; `channels` says so where the file does not. Nothing is
    written to the network if an error is raised: `UserError`, for a file that cannot be read or has
    fewer than half of the network's weights.
    """
    file = weights_file(path) if path.is_dir() else path
    read = read_weights(file)
    if any(ADAPTER_NAME in name for name in read):
        raise UserError(
            f"model.init {file}: holds adapters without the weights that they belong to; merge "
            "them by `manyfaces export RUN OUT.safetensors`, and start from OUT"
        )
    ours: dict[str, Tensor] = network.state_dict()
    weights = named_as_ours(network, read, file)
    if (channels or channels_of(file, read)) == "bgr":
        weights = in_rgb(weights, ours)
    taken: dict[str, Tensor] = {}
    missing, other_shape, resized = [], [], []
    for name, here in ours.items():
        there = weights.get(name)
        if there is None:
            missing += [] if name.endswith(COUNTER) else [name]
        elif there.shape == here.shape:
            taken[name] = there
        else:
            shapes = f"{name} {list(there.shape)} there, {list(here.shape)} here"
            fitted = network.resized(name, there) if isinstance(network, Backbone) else None
            if fitted is None:
                other_shape.append(shapes)
            else:
                taken[name] = fitted
                resized.append(shapes)
    found = Matched(
        file,
        tuple(name for name in taken if not name.endswith(COUNTER)),
        tuple(missing),
        tuple(name for name in weights if name not in ours),
        tuple(other_shape),
        tuple(resized),
        {name: weights[name] for name in taken},
    )
    if 2 * len(found.matched) < found.num_weights or not found.matched:
        raise UserError(_refusal(found, list(weights)))
    with torch.no_grad():
        for name, weight in taken.items():
            ours[name].copy_(weight)
    return found


def named_as_ours(
    network: nn.Module, weights: Mapping[str, Tensor], file: Path
) -> dict[str, Tensor]:
    """The weights of a file by the names that the network has for them, without the prefixes of
    wrappers; those that it does not have keep their names. Raises `UserError` for one that is there
    twice."""
    ours = network.state_dict().keys()
    stripped = _stripped(weights, ours, file)
    if not isinstance(network, Backbone):
        return stripped
    translated = network.our_names(stripped)
    return max(stripped, translated, key=lambda each: len(each.keys() & ours))


def _stripped(
    weights: Mapping[str, Tensor], ours: Collection[str], file: Path
) -> dict[str, Tensor]:
    """The weights by names without the prefixes of wrappers, except where the network itself has
    them."""
    short_names: dict[str, str] = {}
    for name in weights:
        short = name
        while short not in ours:
            prefix = next((each for each in _PREFIXES if short.startswith(each)), None)
            if prefix is None:
                break
            short = short.removeprefix(prefix)
        if short in short_names:
            raise UserError(
                f"model.init {file}: has {short} twice, as {short_names[short]} and as {name}; "
                "keep one network in the file"
            )
        short_names[short] = name
    return {short: weights[name] for short, name in short_names.items()}


def _first(names: tuple[str, ...] | list[str]) -> str:
    more = [f"... ({len(names)} in all)"] if len(names) > _NAMES_SHOWN else []
    return ", ".join([*names[:_NAMES_SHOWN], *more])


def _refusal(found: Matched, names: list[str]) -> str:
    needed = (*found.matched, *found.missing, *found.other_shape)
    shapes = ""
    if found.other_shape:
        shapes = f"; of another shape are {_first(found.other_shape)}"
    return (
        f"model.init {found.path}: only {len(found.matched)} of the network's {found.num_weights} "
        f"weights are in it{shapes}; the network has {_first(needed)}; the file has "
        f"{_first(names)}; set model.kind and its size to what the file was trained as, or "
        "model.init=null"
    )
