"""The loop, the engine, checkpoints, tracking, evaluation, the command line, and trained networks
for programs: `load_model`."""

from importlib.metadata import version
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manyfaces.train.evaluation.model import Model

__all__ = ["__version__", "load_model"]

__version__ = version("manyfaces")


def load_model(source: str | PathLike[str], device: str | None = None) -> "Model":
    """A trained network, ready to embed images and to compare them.

    `source` is a run (its newest checkpoint), `RUN@best`, a checkpoint folder, or a file that
    `manyfaces export` wrote. `device` is one of torch's names; by default the GPU where there is
    one. Raises `manyfaces.configs.errors.UserError` for what is no trained network.
    """
    # Torch takes seconds to import: whoever only asks for the version does not wait for it.
    from manyfaces.train.evaluation.model import Model

    return Model.open(source, device)
