"""Protocol misalignment: what is left of the accuracy where faces are badly aligned."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, model_validator

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol

Shift = Annotated[float, Field(gt=0, le=0.5)]
Degrees = Annotated[float, Field(gt=0, le=180)]
Scaling = Annotated[float, Field(gt=0, lt=1)]


class Misalignment(Protocol):
    """A verification set whose second image of each pair is shifted, turned or scaled, by more and
    more: 10-fold accuracy and AUC for each amount, as curves. Detectors differ by a few per cent of
    a face's side, and by more on small faces (ARoFace, ECCV 2024).

    Each pair has a direction of its own for its shift, and turns to one side and grows or shrinks
    by chance: the same for every network and every amount. What comes from outside of an image is
    black.
    """

    kind: Literal["misalignment"] = "misalignment"
    target: ClassVar[str] = "manyfaces.train.protocols.misalignment.Misalignment"

    path: Annotated[str, PATH]
    """A verification set in InsightFace's layout (`.bin`), or a list of pairs, as in the protocol
    verification."""
    root: Annotated[str | None, PATH] = None
    """The folder that the images of a list are below; null is the folder of the list."""
    interleave: bool = False
    """Take a file that holds all pairs of one kind first, as those of CALFW and CPLFW do."""
    flip: Flip = "sum"
    """What embeddings are compared, as in the protocol verification."""
    shifts: tuple[Shift, ...] = (0.03, 0.06, 0.1, 0.15)
    """How far images are shifted, as shares of their side."""
    angles: tuple[Degrees, ...] = (5, 10, 20, 30)
    """How far they are turned, in degrees."""
    scalings: tuple[Scaling, ...] = (0.05, 0.1, 0.2, 0.3)
    """By how much they are made larger or smaller: by 1.1 or 1 / 1.1 for 0.1."""
    seed: NonNegativeInt = 0
    """Of the directions."""

    @model_validator(mode="after")
    def _something(self) -> "Misalignment":
        if not (self.shifts or self.angles or self.scalings):
            raise ValueError("shifts, angles and scalings are all empty; give one an amount")
        return self

    def named_after(self) -> str:
        return self.path

    def called(self, parents: int = 0) -> str:
        name = super().called(parents)
        return name if self.result_name is not None else f"{name}-misaligned"
