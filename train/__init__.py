"""The loop, the engine, checkpoints, tracking, evaluation, the command line, and trained networks
for programs: `load_model`."""

from collections.abc import Mapping
from importlib.metadata import version
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from manyfaces.train.evaluation.model import Model

__all__ = ["__version__", "load_model"]

__version__ = version("manyfaces")


def load_model(
    source: str | PathLike[str],
    device: str | None = None,
    *,
    model: Mapping[str, Any] | str | None = None,
    channels: Literal["rgb", "bgr"] | None = None,
) -> "Model":
    """A trained network, ready to embed images and to compare them.

    `source` is a run (its newest checkpoint), `RUN@best`, a checkpoint folder, a file or a folder
    that `manyfaces export` wrote (safetensors, ONNX), or weights that others have published:
    InsightFace's `backbone.pth`, AdaFace's `.ckpt`, a folder of CVLface's. Which network these are
    of is found by their names and shapes, or told by `model`, as in a recipe: `{"kind": "iresnet",
    "depth": 50}`; `channels` is the order of colour channels that they were trained on, where the
    file does not say it. No code in a file is run.

    `device` is one of torch's names; by default the GPU where there is one. Raises
    `manyfaces.configs.errors.UserError` for what is no trained network.
    """
    # Torch takes seconds to import: whoever only asks for the version does not wait for it.
    from manyfaces.train.evaluation.model import Model

    return Model.open(source, device, model, channels)
