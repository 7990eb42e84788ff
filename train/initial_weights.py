"""The file of weights that a path of the configuration names."""

from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.models.backbones.weights import has_weights, read_weights, weights_file
from manyfaces.train.checkpoint.choice import chosen, names_checkpoint
from manyfaces.train.checkpoint.commit import COMMIT, committed_file
from manyfaces.train.checkpoint.fetched import fetched
from manyfaces.train.checkpoint.layout import BACKBONE, newest
from manyfaces.train.folder import RunFolder


def check_initial(config: Config, folder: RunFolder) -> None:
    """Read the weights of `model.init`, where the run is going to start from them. Raises
    `UserError` for what is not there or cannot be read."""
    resumes = config.run.resume_from is not None or newest(folder.checkpoints) is not None
    if config.model.init is not None and not resumes:
        read_weights(initial_file(config.model.init))


def trained_file(trained: str) -> Path:
    """The file of weights of a trained network: the file itself where it is one, the backbone's of
    a run or a checkpoint, and that of another folder with a file of weights. Raises `UserError`,
    also where a checkpoint's file does not hold the bytes that were committed."""
    path = fetched(trained).expanduser()
    if path.is_file():
        in_checkpoint = (path.parent / COMMIT).exists()
        return committed_file(path.parent, path.name) if in_checkpoint else path
    if names_checkpoint(path):
        return committed_file(chosen(path), BACKBONE)
    if path.is_dir() and has_weights(path):
        return weights_file(path)
    raise UserError(
        f"{path}: no trained network there; give a run, a checkpoint, or a file that `manyfaces "
        "export` wrote"
    )


def initial_file(init: str) -> Path:
    """The file of weights to read for `model.init`: as `trained_file` gives it, and in another
    folder the one that Hugging Face's programs wrote. Raises `UserError` where there is none."""
    path = fetched(init).expanduser()
    if path.is_file() or names_checkpoint(path):
        return trained_file(str(path))
    if path.is_dir():
        return weights_file(path)
    raise UserError(
        f"model.init {path}: no such file or folder; give a run, a checkpoint, a .safetensors "
        "file, a .pth file or the folder of a Hugging Face model"
    )
