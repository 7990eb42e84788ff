"""The model that a finished run gives MLflow: the backbone of its newest checkpoint, as
`manyfaces export` writes it."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

LOADER = "manyfaces.train.tracking.pyfunc"


@dataclass(frozen=True)
class ExportedModel:
    """An exported backbone, and what MLflow is told of it."""

    file: Path
    step: int
    checkpoint: str
    """Where the checkpoint is or was."""
    image_hw: tuple[int, int]
    embedding_dim: int
    loader: str = LOADER
    """The module that opens the file."""
    requirement: str = f"manyfaces=={version('manyfaces')}"
    """What has to be installed for that."""


def export_model(checkpoint: Path, folder: Path) -> ExportedModel:
    """Export the backbone of a checkpoint to a file in this folder. Raises `UserError`."""
    # Torch takes seconds to import: only runs that register a model wait for it.
    from manyfaces.train.evaluation.exported import write_exported
    from manyfaces.train.evaluation.trained import load_trained

    trained = load_trained(checkpoint)
    step, file = trained.state.step, folder / "model.safetensors"
    write_exported(trained.encoder, file, f"{trained.config.run.name}, step {step}")
    return ExportedModel(
        file, step, str(checkpoint), trained.image_hw, trained.encoder.model.embedding_dim
    )
