"""A trained network with its configuration, opened from a run or a checkpoint."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from manyfaces.configs.schema import Config
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.checkpoint.choice import chosen
from manyfaces.train.checkpoint.fetched import fetched
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.encoders import encoder_of


@dataclass(frozen=True)
class Trained:
    """A checkpoint's network on this machine's device."""

    checkpoint: Path
    state: RunState
    encoder: Encoder

    @property
    def config(self) -> Config:
        """The configuration of the run that wrote the checkpoint."""
        return self.state.config

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the images that it was trained on."""
        return self.encoder.image_hw

    def embedder(self, batch_size: int) -> Embedder:
        """Embeds images as the network sees them in training, in the same precision."""
        return Embedder.of(self.encoder, batch_size)


def open_trained(run: Path) -> Trained:
    """The network of a run's newest committed checkpoint, of the best one of `RUN@best`, or of the
    checkpoint folder given; a run or a checkpoint may be at a URL.

    Raises `UserError` where there is none, and as `load_trained` does.
    """
    return load_trained(chosen(fetched(run)))


def load_trained(checkpoint: Path) -> Trained:
    """The network of a committed checkpoint, on the GPU where there is one. Raises `UserError` for
    a state or a configuration that this version does not know."""
    state = RunState.read(checkpoint)
    return Trained(checkpoint, state, encoder_of(state, checkpoint, default_device()))


def default_device() -> torch.device:
    """The GPU where there is one, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_all_cores() -> None:
    """Let torch use every core that this process may run on, as the command line does where it
    works alone on a machine; with OMP_NUM_THREADS in the environment it is that many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
