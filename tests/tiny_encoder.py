"""A network of milliseconds as an exported file, for tests of what embeds by one."""

from pathlib import Path

import torch

from manyfaces.configs.backbones.custom import CustomBackbone
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.evaluation.exported import write_exported

PX, DIM = 32, 8
SLEEP = "TINY_ENCODER_SLEEPS_S"
"""How long each batch takes, if the environment says so."""
_CODE = f"""
import os, time
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, embedding_dim, image_hw):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=4)
        self.second = nn.Linear(8 * 7 * 7, embedding_dim)

    def forward(self, images):
        time.sleep(float(os.environ.get("{SLEEP}", "0")))
        return self.second(self.first(images).relu().flatten(1))
"""


def tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """The exported file, which takes images of 32 px and gives 8 numbers; its code is beside it."""
    code = folder / "tiny.py"
    code.write_text(_CODE)
    torch.manual_seed(seed)
    settings = CustomBackbone(file=str(code), name="Tiny", embedding_dim=DIM)
    backbone = settings.build(image_hw=(PX, PX))
    file = folder / f"tiny-{seed}.safetensors"
    encoder = Encoder(backbone, settings, (PX, PX), torch.device("cpu"), autocast=False)
    write_exported(encoder, file, "a test")
    return file
