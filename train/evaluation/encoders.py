"""Trained networks by their path: of a run, a checkpoint, or a file of weights."""

from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ValidationError

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.parsed import first_fault
from manyfaces.models.backbones.channels import Channels
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.published import open_published
from manyfaces.train.checkpoint.layout import BACKBONE, STATE
from manyfaces.train.checkpoint.network import load_backbone, load_score_heads
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.evaluation.exported import read_exported, read_facts, said_by
from manyfaces.train.evaluation.onnx_network import ENDING as ONNX_ENDING
from manyfaces.train.evaluation.onnx_network import read_onnx, read_onnx_facts
from manyfaces.train.initial_weights import trained_file


def open_encoder(
    path: Path,
    device: torch.device,
    model: schema.Backbone | None = None,
    channels: Channels | None = None,
) -> Encoder:
    """The encoder of a run's newest committed checkpoint, of a checkpoint folder, of the file of
    weights in one, of an exported file or folder, or of weights that others have published; for
    these, `model` and `channels` are as `open_published` takes them. Raises `UserError`."""
    file = trained_file(str(path))
    says_it_itself = True
    if _is_of_checkpoint(file):
        encoder = encoder_of(RunState.read(file.parent), file.parent, device)
    elif file.suffix == ONNX_ENDING:
        encoder = read_onnx(file, device)
    elif _says_its_network(file):
        encoder = read_exported(file, device)
    else:
        says_it_itself = False
        encoder = open_published(file, device, model, channels)
    if says_it_itself and (model or channels):
        raise UserError(f"{path}: says itself which network it is; leave model and channels out")
    return encoder


def parse_backbone(value: Any) -> schema.Backbone | None:
    """A network as a recipe has it under `model`: a mapping, the word of its kind, or YAML of
    these; None stays. Raises `UserError`."""
    if value is None:
        return None
    try:
        tree = yaml.safe_load(value) if isinstance(value, str) else value
        return _Network.model_validate({"model": tree}).model
    except (ValidationError, yaml.YAMLError) as error:
        told = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"{' '.join(told.split())}; give a network such as {{kind: iresnet, depth: 50}}"
        ) from error


class _Network(BaseModel):
    model: schema.Backbone


def checked_file(path: str) -> str:
    """The file of weights of a trained network, once it is sure of which network it is. Raises
    `UserError`."""
    file = trained_file(path)
    if _is_of_checkpoint(file):
        RunState.read(file.parent)
    elif file.suffix == ONNX_ENDING:
        read_onnx_facts(file)
    elif _says_its_network(file):
        read_facts(file)
    else:
        open_published(file, torch.device("cpu"))
    return str(file)


def _says_its_network(file: Path) -> bool:
    return file.suffix == ".safetensors" and said_by(file) is not None


def _is_of_checkpoint(file: Path) -> bool:
    return file.name == BACKBONE and (file.parent / STATE).is_file()


def encoder_of(state: RunState, checkpoint: Path, device: torch.device) -> Encoder:
    """The encoder of a committed checkpoint with this state."""
    backbone, config = load_backbone(checkpoint, state), state.config
    heads = {name: head.to(device) for name, head in load_score_heads(checkpoint, state).items()}
    autocast = config.train.precision == "bfloat16"
    return Encoder(backbone.to(device), config.model, config.data.image_hw, device, autocast, heads)
