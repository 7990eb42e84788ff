"""Format state_dict: the plain weights by `torch.save`, as InsightFace's `backbone.pth` is."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.weights import read_weights
from manyfaces.train.evaluation.exported import write_weights
from manyfaces.train.exporters.exporter import Exporter, Job


class StateDict(Exporter):
    """A file for programs that build the network themselves: it does not say which one it is."""

    word, ending = "state_dict", ".pth"
    described = "the plain state_dict, as InsightFace's backbone.pth is, for model.init"
    usage: ClassVar[str] = """\
```python
import torch

network.load_state_dict(torch.load("{name}", weights_only=True))
```"""

    def write(self, job: Job, path: Path) -> None:
        write_weights(job.encoder, path, job.facts, self.ending)

    def opened(self, job: Job, path: Path, device: torch.device) -> Encoder:
        backbone: nn.Module = job.facts.model.build(image_hw=job.facts.image_hw)
        backbone.load_state_dict(read_weights(path))
        return replace(
            job.encoder, backbone=backbone.to(device), model=job.facts.model, device=device
        )
