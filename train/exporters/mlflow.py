"""Format mlflow: a folder that `mlflow.pyfunc.load_model` opens, with a signature."""

import tempfile
from pathlib import Path
from typing import ClassVar

import torch

from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.exported import write_weights
from manyfaces.train.exporters.exporter import Exporter, Job
from manyfaces.train.exporters.graph import quiet
from manyfaces.train.tracking.model import ExportedModel
from manyfaces.train.tracking.server import save_pyfunc

_FILE = "model.safetensors"


class Mlflow(Exporter):
    """A model of MLflow's: uint8 RGB images [N, H, W, 3] in, unit embeddings [N, D] out. It is
    opened where manyfaces is installed, and holds no pickle."""

    word = "mlflow"
    described = "a model of MLflow's with a signature, images in and embeddings out"
    usage: ClassVar[str] = """\
```python
import mlflow

model = mlflow.pyfunc.load_model("{name}")  # where manyfaces is installed
embeddings = model.predict(images)  # uint8 RGB [N, H, W, 3]
```"""

    def write(self, job: Job, path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="manyfaces-mlflow-") as scratch:
            file = Path(scratch, _FILE)
            write_weights(job.encoder, file, job.facts, ".safetensors")
            exported = ExportedModel(
                file,
                step=0,
                checkpoint=job.facts.source,
                image_hw=job.facts.image_hw,
                embedding_dim=job.facts.model.embedding_dim,
            )
            with quiet():  # MLflow warns of its own code
                save_pyfunc(exported, path)

    def opened(self, job: Job, path: Path, device: torch.device) -> Encoder:
        return open_encoder(self.weights_in(path), device)

    def weights_in(self, path: Path) -> Path:
        return path / "data" / _FILE
