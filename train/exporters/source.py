"""What is exported: the network of a run or a checkpoint, of an exported file, or of weights that
others have published."""

from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.configs.schema import Backbone, Config
from manyfaces.configs.urls import url_of
from manyfaces.models.backbones.channels import Channels
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.checkpoint.choice import names_checkpoint
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.trained import default_device, open_trained
from manyfaces.train.initial_weights import trained_file


@dataclass(frozen=True)
class Source:
    """A network, and what is known of it."""

    encoder: Encoder
    told: str
    """Where it came from, for people, without folders of this machine."""
    path: Path
    """The checkpoint, or the file."""
    state: RunState | None = None
    """Of the checkpoint."""
    sha256: str = ""
    """Of the file, where it is no checkpoint."""

    @property
    def config(self) -> Config | None:
        """The configuration of the run that trained it."""
        return self.state.config if self.state is not None else None

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint, where it is one."""
        return self.path if self.state is not None else None

    @property
    def name(self) -> str:
        """What an exported file is called where nobody says it."""
        if self.state is None:
            return self.path.stem
        return f"{self.state.config.run.name}-step-{self.state.step}"


def open_source(
    path: Path, model: Backbone | None = None, channels: Channels | None = None
) -> Source:
    """The network at a path; `model` and `channels` are for published weights that do not say
    themselves what they are of. Raises `UserError` where there is none, and for an ONNX file, which
    cannot be turned into anything else."""
    if url_of(path) is not None or names_checkpoint(path):
        if model is not None or channels is not None:
            raise UserError(f"{path}: is a run; --model and --channels are for files of others")
        trained = open_trained(path)
        told = f"run {trained.config.run.name}, step {trained.state.step}"
        return Source(trained.encoder, told, trained.checkpoint, trained.state)
    encoder = open_encoder(path, default_device(), model, channels)
    if encoder.is_graph:
        raise UserError(
            f"{path}: is an ONNX graph, which is written in no other format; give the run, or its "
            "export as safetensors"
        )
    file = trained_file(str(path))
    return Source(encoder, f"the file {path.name}", path, sha256=file_sha256(file))
