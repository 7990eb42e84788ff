"""Protocol robustness: how often small changes to an image turn the verdict on a pair."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol

Region = Literal["face", "sticker", "glasses", "lower_face"]
Budget = Annotated[float, Field(ge=1, le=255)]


class Robustness(Protocol):
    """Pairs of which the first image is attacked by projected gradient descent, as FACESEC has it:
    the share of pairs that are judged wrongly, by the budget of the attack and without one."""

    kind: Literal["robustness"] = "robustness"
    target: ClassVar[str] = "manyfaces.train.protocols.robustness.Robustness"

    path: Annotated[str, PATH]
    """A set of pairs, as kind verification has it."""
    root: Annotated[str | None, PATH] = None
    """As that of kind verification."""
    goal: Literal["dodging", "impersonation"] = "dodging"
    """Whether genuine pairs are to be rejected, or impostor pairs to be accepted."""
    region: Region = "face"
    """The pixels that may change: all, or a part of the aligned face."""
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)] = (1, 2, 4, 8)
    """How far a pixel may change, in steps of 8 bits; there is a row of the table for each."""
    step: Annotated[float, Field(gt=0, le=255)] = 2
    """How far a pixel changes at a time, in steps of 8 bits, but not beyond the budget."""
    steps: Annotated[int, Field(ge=1)] = 40
    """How many times."""
    universal: bool = False
    """One change for all images of a group, which makes its least changed pair change the most."""
    group: Annotated[int, Field(ge=1, le=4096)] = 16
    """Pairs that are attacked at a time, and those that share a universal change."""
    most_pairs: Annotated[int, Field(ge=1)] = 512
    """The first so many pairs of the kind are attacked: each costs `steps` passes a budget."""
    far: Annotated[float, Field(gt=0, lt=1)] = 1e-2
    """The threshold is that at which the unchanged set accepts this share of impostor pairs."""
    made_with: Annotated[str | None, PATH] = None
    """A run, checkpoint or file of another network that the changes are made with, which tells how
    they transfer; null is the network itself (white box)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the noise that the search starts from."""
    flip: Flip = "none"
    """As that of kind verification; mirror images are attacked with their image."""

    @model_validator(mode="after")
    def _budgets_rise(self) -> Self:
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError("budgets have to rise; give each once, the least first")
        return self

    def named_after(self) -> str:
        return self.path

    def called(self, parents: int = 0) -> str:
        name = super().called(parents)
        return name if self.result_name else f"{name}-{self.goal}-{self.region}"
