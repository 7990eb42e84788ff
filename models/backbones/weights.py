"""Files of weights as ours and other programs write them, read without running code that they might
hold."""

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from manyfaces.configs.errors import UserError

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
"""Endings of files that `torch.save` writes."""
_FOLDER_FILES = (
    "backbone.safetensors",
    "model.safetensors",
    "pytorch_model.bin",
    "model.pt",
    "pretrained_model/model.pt",
)
"""Files of weights in the folder of a checkpoint of ours, a model of Hugging Face's, of CVLface's,
and of one of CVLface's at Hugging Face."""
_INNER = ("state_dict_backbone", "state_dict", "model_state_dict", "model", "backbone")
"""Keys under which training programs keep the weights in a file that holds more than them."""
_LEFT_OUT = (
    "argparse.Namespace",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
    "omegaconf.",
    "pytorch_lightning.",
    "utils.dotdict",
)
"""Starts of the names of what training programs keep beside the weights: settings, and the state of
callbacks. Nothing is imported or made for them: an empty mapping takes their place."""


class _Empty:
    """What is made in place of an object that is left out: an empty mapping, whatever it is made
    with, as torch's reader fills no other."""

    def __new__(cls, *arguments: object) -> Any:
        return OrderedDict()


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder: one of our checkpoints, or a model of Hugging Face's or
    CVLface's. Raises `UserError` where there is none."""
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"model.init {folder}: no weights there; expected {', '.join(_FOLDER_FILES[:-1])} or "
        f"{_FOLDER_FILES[-1]} in the folder"
    )


def has_weights(folder: Path) -> bool:
    """Whether a folder has a file that `weights_file` gives."""
    return any((folder / name).is_file() for name in _FOLDER_FILES)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU. Objects of other types are never made, and no code
    of the file runs. Raises `UserError`."""
    if not file.is_file():
        raise UserError(f"model.init {file}: no such file; every worker must see it")
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        if file.suffix in TORCH_ENDINGS:
            return _tensors(_loaded(file), file)
    except pickle.UnpicklingError as error:
        raise UserError(f"model.init {file}: {_why_refused(error)}") from error
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        text = str(error).partition("\n")[0]
        raise UserError(
            f"model.init {file}: cannot be read ({text}); use an intact copy"
        ) from error
    raise UserError(
        f"model.init {file}: expected a file that ends in .safetensors, "
        f"{', '.join(TORCH_ENDINGS[:-1])} or {TORCH_ENDINGS[-1]}"
    )


def _loaded(file: Path) -> Any:
    """What a file of `torch.save` holds, without the objects of training programs."""
    try:
        unknown = get_unsafe_globals_in_checkpoint(file)
    except ValueError:  # of torch before 1.6, whose files are no archives
        unknown = []
    left_out: list[Any] = [(_Empty, name) for name in unknown if name.startswith(_LEFT_OUT)]
    with warnings.catch_warnings(), safe_globals(left_out):
        # It warns of pickle protocols, which tells nobody anything.
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


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
