"""Format torch_export: the network as torch.export has it, for torch without manyfaces and for
AOTInductor."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.evaluation.exported import KEY, on_raw_pixels
from manyfaces.train.exporters.exporter import Exporter, Job
from manyfaces.train.exporters.graph import described, program, quiet


class TorchExport(Exporter):
    """A `.pt2`. Torch may run code that stands in such a file when it opens it, so that
    `load_model` does not: open those that you trust by `torch.export.load`."""

    word, ending = "torch_export", ".pt2"
    described = "a torch.export program, normalisation inside, for torch without manyfaces"
    usage: ClassVar[str] = """\
```python
import torch

network = torch.export.load("{name}").module()
embeddings = network(images)  # float32 RGB [N, 3, height, width], from 0 to 255
```"""

    def write(self, job: Job, path: Path) -> None:
        exported = program(job)
        with quiet():
            torch.export.save(exported, path, extra_files={KEY: job.facts.model_dump_json()})

    def takes(self, job: Job) -> str:
        return described(job.facts)

    def opened(self, job: Job, path: Path, device: torch.device) -> Encoder:
        with quiet():
            exported = torch.export.load(path)
        return replace(
            job.encoder,
            backbone=_Program(exported),
            model=on_raw_pixels(job.facts.model),
            device=torch.device("cpu"),
            autocast=False,
        )


class _Program(nn.Module):
    """An exported program as a module whose mode can be set."""

    def __init__(self, exported: ExportedProgram) -> None:
        super().__init__()
        self._run = (exported.module(),)  # in a tuple: no part, as its mode cannot be set

    def forward(self, images_NCHW: Tensor) -> Tensor:
        embeddings_ND: Tensor = self._run[0](images_NCHW)
        return embeddings_ND
