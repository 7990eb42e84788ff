"""Format safetensors: the weights, and in the file's metadata what it takes to embed by them."""

from pathlib import Path
from typing import ClassVar

from manyfaces.train.evaluation.exported import write_weights
from manyfaces.train.exporters.exporter import Exporter, Job


class Safetensors(Exporter):
    """A file that `load_model`, `model.init` and any reader of safetensors opens."""

    word, ending = "safetensors", ".safetensors"
    described = "weights with what it takes to embed by them, for load_model and model.init"
    usage: ClassVar[str] = """\
```python
from manyfaces.train import load_model

model = load_model("{name}")
embeddings = model.embed(["a.jpg", "b.jpg"])  # aligned faces to unit vectors
```"""

    def write(self, job: Job, path: Path) -> None:
        write_weights(job.encoder, path, job.facts, self.ending)
