"""Format folder: the files that models on Hugging Face's hub have."""

import json
from pathlib import Path
from typing import Any, ClassVar

from manyfaces.train.evaluation.exported import Exported, write_weights
from manyfaces.train.exporters.exporter import Exporter, Job

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
_PIXEL_MAX = 255
_BILINEAR = 2
"""PIL's number of the bilinear filter, by which Hugging Face's processors call it."""


class Folder(Exporter):
    """`config.json`, `model.safetensors`, `preprocessor_config.json` and the card as `README.md`.

    `manyfaces.train.load_model` opens it. Hugging Face's transformers do not, as the networks are
    none of theirs; the two JSON files tell people and other programs what the network takes.
    """

    word = "folder"
    described = "config.json, model.safetensors, preprocessor_config.json and README.md"
    usage: ClassVar[str] = """\
```python
from manyfaces.train import load_model  # pip install manyfaces

model = load_model("{name}")  # this folder
embeddings = model.embed(["a.jpg", "b.jpg"])  # aligned faces to unit vectors
```

The library that loads this folder is manyfaces. `transformers` does not know the network: its
`AutoModel` refuses `config.json`."""

    def write(self, job: Job, path: Path) -> None:
        path.mkdir()
        write_weights(job.encoder, path / WEIGHTS, job.facts, ".safetensors")
        for name, content in ((CONFIG, _config(job.facts)), (PREPROCESSOR, _pixels(job.facts))):
            (path / name).write_text(json.dumps(content, indent=2) + "\n")

    def weights_in(self, path: Path) -> Path:
        return path / WEIGHTS


def _config(facts: Exported) -> dict[str, Any]:
    """What transformers keep in `config.json`, and what the metadata of the weights say."""
    return {
        "model_type": "manyfaces",
        "architectures": [str(facts.model.word())],
        "torch_dtype": facts.precision,
        "image_size": list(facts.image_hw),
        "num_channels": 3,
        "hidden_size": facts.model.embedding_dim,
        "manyfaces": facts.model_dump(mode="json"),
    }


def _pixels(facts: Exported) -> dict[str, Any]:
    """How pixels become the network's input, in the words of transformers' image processors."""
    height, width = facts.image_hw
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / _PIXEL_MAX,
        "do_normalize": True,
        "image_mean": [value / _PIXEL_MAX for value in facts.model.pixel_mean],
        "image_std": [value / _PIXEL_MAX for value in facts.model.pixel_std],
    }
