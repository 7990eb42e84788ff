"""Weights to start a fresh run from (`model.init`): files of ours, of InsightFace, of timm and of
Hugging Face, read without running code that they might hold."""

import pickle
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.backbone import Backbone

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
"""Endings of files that `torch.save` writes."""
_FOLDER_FILES = ("backbone.safetensors", "model.safetensors", "pytorch_model.bin")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
"""What training programs and wrappers put before the names of a network's weights."""
_INNER = ("state_dict_backbone", "state_dict", "model_state_dict", "model", "backbone")
"""Keys under which training programs keep the weights in a file that holds more than them."""
ADAPTER_NAME = ".lora_"
"""Part of the names of adapters' weights."""
_COUNTER = "num_batches_tracked"
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


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder: one of our checkpoints, or a model of Hugging Face's.
    Raises `UserError` where there is none."""
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"model.init {folder}: no weights there; expected {', '.join(_FOLDER_FILES[:-1])} or "
        f"{_FOLDER_FILES[-1]} in the folder"
    )


def load_initial(network: nn.Module, path: Path) -> Matched:
    """Copy the weights of a file into `network`, by name, where the shapes are equal.

    `path` is a file that ends in `.safetensors` or in one of `TORCH_ENDINGS`, or a folder, of which
    `weights_file` gives the file. Prefixes such as `module.` are stripped, and where the network
    knows how others name its weights (`Backbone.our_names`) their names are translated; where it
    can interpolate one of another shape (`Backbone.resized`) it does. Nothing is written to the
    network if an error is raised: `UserError`, for a file that cannot be read or has fewer than
    half of the network's weights.
    """
    file = weights_file(path) if path.is_dir() else path
    ours: dict[str, Tensor] = network.state_dict()
    read = read_weights(file)
    if any(ADAPTER_NAME in name for name in read):
        raise UserError(
            f"model.init {file}: holds adapters without the weights that they belong to; merge "
            "them by `manyfaces export RUN OUT.safetensors`, and start from OUT"
        )
    weights = _named_as_ours(network, _stripped(read, ours.keys(), file), ours)
    taken: dict[str, Tensor] = {}
    missing, other_shape, resized = [], [], []
    for name, here in ours.items():
        there = weights.get(name)
        if there is None:
            missing += [] if name.endswith(_COUNTER) else [name]
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
        tuple(name for name in taken if not name.endswith(_COUNTER)),
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


def read_weights(file: Path) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU. Objects of other types are never made, and no code
    of the file runs. Raises `UserError`."""
    if not file.is_file():
        raise UserError(f"model.init {file}: no such file; every worker must see it")
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        if file.suffix in TORCH_ENDINGS:
            with warnings.catch_warnings():
                # It warns of pickle protocols, which tells nobody anything.
                warnings.simplefilter("ignore")
                value = torch.load(file, map_location="cpu", weights_only=True)
            return _tensors(value, file)
    except pickle.UnpicklingError as error:
        raise UserError(f"model.init {file}: {_why_refused(error)}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        text = str(error).partition("\n")[0]
        raise UserError(
            f"model.init {file}: cannot be read ({text}); use an intact copy"
        ) from error
    raise UserError(
        f"model.init {file}: expected a file that ends in .safetensors, "
        f"{', '.join(TORCH_ENDINGS[:-1])} or {TORCH_ENDINGS[-1]}"
    )


def _why_refused(error: pickle.UnpicklingError) -> str:
    """What a file that `torch.load` refuses holds, in one line."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found is None:
        return "is not a file that torch.save writes, or is damaged; use an intact copy"
    return (
        f"holds {found[1]} besides tensors, which could run code and is not loaded; save the "
        "network's state_dict() alone, best as .safetensors"
    )


def _tensors(value: Any, file: Path) -> dict[str, Tensor]:
    """The named tensors of what a file holds, at its top or under one of the usual keys."""
    inner = [value, *(value[key] for key in _INNER if key in value)] if _is_mapping(value) else []
    for each in filter(_is_mapping, inner):
        found = {name: tensor for name, tensor in each.items() if isinstance(tensor, Tensor)}
        if found:
            return found
    raise UserError(
        f"model.init {file}: holds no weights by name; expected a network's state_dict(), alone or "
        f"under {', '.join(_INNER[:-1])} or {_INNER[-1]}"
    )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


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


def _named_as_ours(
    network: nn.Module, weights: dict[str, Tensor], ours: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights by the network's names: as they are, or translated, whichever fits more."""
    if not isinstance(network, Backbone):
        return weights
    translated = network.our_names(weights)
    return max(weights, translated, key=lambda each: len(each.keys() & ours.keys()))


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
