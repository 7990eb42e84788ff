"""The file of weights that `model.init` names."""

from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.init import weights_file
from manyfaces.train.checkpoint.layout import BACKBONE, chosen


def initial_file(init: str) -> Path:
    """A file of weights as it is; of a run or a checkpoint the network's, of another folder the
    model's that Hugging Face's programs wrote. Raises `UserError`."""
    path = Path(init)
    if path.is_file():
        return path
    if (path / "checkpoints").is_dir() or path.parent.name == "checkpoints":
        return chosen(path) / BACKBONE
    if path.is_dir():
        return weights_file(path)
    raise UserError(
        f"model.init {path}: no such file or folder; give a run, a checkpoint, a .safetensors "
        "file, a .pth file or the folder of a Hugging Face model"
    )
