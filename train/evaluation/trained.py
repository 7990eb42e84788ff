"""A trained network with its configuration, opened from a run or a checkpoint."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.layout import chosen, read_backbone
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.evaluation.decoding import decode_threads
from manyfaces.train.evaluation.embedder import Embedder


@dataclass(frozen=True)
class Trained:
    """A checkpoint's network on this machine's device."""

    checkpoint: Path
    state: RunState
    backbone: nn.Module
    device: torch.device

    @property
    def config(self) -> Config:
        """The configuration of the run that wrote the checkpoint."""
        return self.state.config

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the images that it was trained on."""
        return self.config.data.image_hw

    def embedder(self, batch_size: int) -> Embedder:
        """Embeds images as the network sees them in training, in the same precision."""
        return Embedder(
            self.backbone,
            self.config.model,
            self.image_hw,
            self.device,
            autocast=self.config.train.precision == "bfloat16",
            batch_size=batch_size,
            decode_threads=decode_threads(),
        )


def open_trained(run: Path) -> Trained:
    """The network of a run's newest committed checkpoint, or of the checkpoint folder given.

    Raises `UserError` where there is none, and as `load_trained` does.
    """
    return load_trained(chosen(run))


def load_trained(checkpoint: Path) -> Trained:
    """The network of a committed checkpoint, on the GPU where there is one. Raises `UserError` for
    a state or a configuration that this version does not know."""
    state = RunState.read(checkpoint)
    config = state.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone: nn.Module = config.model.build(image_hw=config.data.image_hw)
    backbone.load_state_dict(read_backbone(checkpoint))
    return Trained(checkpoint, state, backbone.to(device), device)


def use_all_cores() -> None:
    """Let torch use every core, as the command line does where it works alone on a machine."""
    torch.set_num_threads(os.cpu_count() or 1)
