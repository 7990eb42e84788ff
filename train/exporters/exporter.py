"""What every format of an exported network is.

A new format is a subclass in a file of this folder, and a test.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.exported import Exported, Precision


@dataclass(frozen=True)
class Job:
    """What is to be written."""

    encoder: Encoder
    facts: Exported
    """What the file says of the network."""
    calibration_NHWC: Tensor | None = None
    """Images for what has to be measured on some, uint8 RGB on the CPU; given for int8 alone."""

    @property
    def precision(self) -> Precision:
        """The numbers that the weights are kept in."""
        return self.facts.precision


class Exporter(ABC):
    """Writes trained networks in one format."""

    word: ClassVar[str]
    """What `manyfaces export --to` calls it."""
    described: ClassVar[str]
    """What it is, for people."""
    ending: ClassVar[str] = ""
    """What the name of a file ends in; empty for a format that is a folder."""
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16")
    """The numbers that weights can be kept in."""
    usage: ClassVar[str]
    """How the network is used, as Markdown for its card; `{name}` is the name of the file."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Packages that it needs and that are not installed with manyfaces by itself."""

    def require(self) -> None:
        """Raise `UserError` where a package that the format needs is not installed."""
        for name in self.packages:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UserError(
                    f"--to {self.word} needs the package {error.name or name}: pip install "
                    f"'manyfaces[{self.word}]'"
                ) from error

    @abstractmethod
    def write(self, job: Job, path: Path) -> None:
        """Write the network to a file, or a folder, that is not there yet. Raises `UserError`."""

    def opened(self, job: Job, path: Path, device: torch.device) -> Encoder:
        """What was written, opened again to be compared with what it was made of."""
        return open_encoder(path, device)

    def takes(self, job: Job) -> str:
        """What the network takes and gives, for its card."""
        model = job.facts.model
        return (
            f"(pixels - {list(model.pixel_mean)}) / {list(model.pixel_std)}, RGB from 0 to 255, "
            f"to {model.embedding_dim} numbers"
        )

    def weights_in(self, path: Path) -> Path:
        """The file with the weights, in what was written."""
        return path


def exporters() -> tuple[Exporter, ...]:
    """One of each format, in the order of their words."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return tuple(sorted((kind() for kind in _leaves(Exporter)), key=lambda each: each.word))


def exporter_of(word: str | None, out: Path | None) -> Exporter:
    """The format of this word, or without one that of a file of this name. Raises `UserError`."""
    known = exporters()
    if word is not None:
        found = next((each for each in known if each.word == word), None)
        words = ", ".join(each.word for each in known)
        told = f"--to {word}: no such format; the formats are {words}"
    else:
        found = next((each for each in known if out and each.ending == out.suffix != ""), None)
        endings = ", ".join(each.ending for each in known if each.ending)
        told = f"{out}: expected a name that ends in one of {endings}, or --to with a format"
    if found is None:
        raise UserError(told)
    return found


def _leaves(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        if "word" in vars(child):
            yield child
        yield from _leaves(child)
