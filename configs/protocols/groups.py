"""Protocol groups: verification, told apart by groups of people."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol


class Groups(Protocol):
    """Pairs of images told apart by groups of people, as RFW's four files are or as a table says:
    TAR and FMR of each group at one threshold for all, their gaps and ratios, and the 10-fold
    accuracy of each group."""

    kind: Literal["groups"] = "groups"
    target: ClassVar[str] = "manyfaces.train.protocols.groups.Groups"

    paths: Annotated[tuple[str, ...], PATH, Field(min_length=1)]
    """Sets of pairs, each as kind verification has it. Without `groups` each is a group, which is
    called after its file."""
    root: Annotated[str | None, PATH] = None
    """The folder that the images of lists are below; null is the folder of each list."""
    groups: Annotated[str | None, PATH] = None
    """A CSV with a row of names. Its first column is `identity`, a person of LFW's form of list, or
    `image`, a path as the list has it or the number of an image of a `.bin`; each other column
    is a way to tell groups apart. Pairs across groups count for the threshold alone."""
    column: str | None = None
    """The column of `groups` by which they are told apart; null is its second."""
    fmr: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """The share of all impostor pairs that the one threshold accepts, which is not exceeded."""
    flip: Flip = "sum"
    """As that of kind verification."""
    interleave: bool = False
    """As that of kind verification."""

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        if self.groups is None and len(self.paths) == 1:
            raise ValueError("one set is one group: give a CSV as groups, or several paths")
        if self.groups is None and self.column is not None:
            raise ValueError("column is one of the table in groups, and that is not given")
        return self

    def named_after(self) -> str:
        first = self.paths[0]
        return first if len(self.paths) == 1 else str(Path(first).absolute().parent)

    def called(self, parents: int = 0) -> str:
        name = super().called(parents)
        return name if self.result_name else f"{name}-by-{self.column or 'group'}"
