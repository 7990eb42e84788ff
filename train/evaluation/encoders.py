"""Trained networks by their path: of a run, a checkpoint, or a file of weights."""

from pathlib import Path

import torch

from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.checkpoint.layout import BACKBONE, STATE
from manyfaces.train.checkpoint.network import load_backbone, load_score_heads
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.evaluation.exported import read_exported, read_facts
from manyfaces.train.initial_weights import trained_file


def open_encoder(path: Path, device: torch.device) -> Encoder:
    """The encoder of a run's newest committed checkpoint, of a checkpoint folder, of the file of
    weights in one, or of an exported file. Raises `UserError`."""
    file = trained_file(str(path))
    if _is_of_checkpoint(file):
        return encoder_of(RunState.read(file.parent), file.parent, device)
    return read_exported(file, device)


def checked_file(path: str) -> str:
    """The file of weights of a trained network, which says what network it is of. Raises
    `UserError`."""
    file = trained_file(path)
    if _is_of_checkpoint(file):
        RunState.read(file.parent)
    else:
        read_facts(file)
    return str(file)


def _is_of_checkpoint(file: Path) -> bool:
    return file.name == BACKBONE and (file.parent / STATE).is_file()


def encoder_of(state: RunState, checkpoint: Path, device: torch.device) -> Encoder:
    """The encoder of a committed checkpoint with this state."""
    backbone, config = load_backbone(checkpoint, state), state.config
    heads = {name: head.to(device) for name, head in load_score_heads(checkpoint, state).items()}
    autocast = config.train.precision == "bfloat16"
    return Encoder(backbone.to(device), config.model, config.data.image_hw, device, autocast, heads)
