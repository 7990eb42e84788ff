"""What every mapping of the configuration is, and what each of its fields decides."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Decides:
    """What a field of the configuration decides, as the metadata of its annotation.

    `tensors`: which tensors a checkpoint has; such a value cannot change in any resume.
    `results`: what a run computes; a run of the same name must have the same value.
    `nothing`: neither; it may change whenever the run is resumed.
    """

    what: Literal["tensors", "results", "nothing"]
    by: Callable[[Any], object] | None = None
    """What of the mapping that holds the field decides tensors, where that is not the value itself:
    momentum decides them by being zero or not."""


@dataclass(frozen=True)
class Holds:
    """What a field holds, as the metadata of its annotation."""

    what: Literal["path", "node path", "weights", "file"]


PATH = Holds("path")
"""A path or several: relative ones are made absolute before they travel to workers, and `~` is the
home of who launches the run."""
NODE_PATH = Holds("node path")
"""A path or several, made absolute as those of `PATH` are, but `~` stays: each node of a cluster
has a home of its own."""
WEIGHTS = Holds("weights")
"""A run, a checkpoint or a file of weights: the launching process puts the file in its place."""
FILE = Holds("file")
"""A file whose SHA-256 is a part of the run's identity."""


def _no_url(path: str | None) -> str | None:
    if path is not None and "://" in path:
        raise ValueError(
            f"{path!r} is a URL; give a folder of a file system (a store can be mounted)"
        )
    return path


ON_FILE_SYSTEM = AfterValidator(_no_url)
"""Refuses URLs, for what needs the renames and locks of a file system."""
TENSORS, RESULTS, NOTHING = Decides("tensors"), Decides("results"), Decides("nothing")


class Node(BaseModel):
    """A mapping of the configuration: frozen, without unknown keys, a sentence under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
    decides: ClassVar[Decides] = RESULTS
    """What its fields decide that do not say it themselves."""
