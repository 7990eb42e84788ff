"""Section `evaluation`: what a run is scored by, and when."""

from typing import Annotated, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from manyfaces.configs.node import NOTHING, PATH, Decides, Node
from manyfaces.configs.protocols.protocol import Protocol
from manyfaces.configs.protocols.verification import Verification


class Evaluation(Node):
    """What a run is scored by, and when; it may change when a run is resumed."""

    decides: ClassVar[Decides] = NOTHING

    pairs: Annotated[tuple[str, ...], PATH] = ()
    """Verification sets (InsightFace `.bin`): each is short for a protocol of kind verification."""
    protocols: tuple[Protocol, ...] = ()
    """Protocols of any kind, besides `pairs`; they may change whenever a run is resumed."""
    every_steps: NonNegativeInt = 0
    """Steps between evaluations in training; 0 is at the end only."""
    batch_size: PositiveInt = 200
    """Images that each worker embeds at a time."""

    def all_protocols(self) -> tuple[Protocol, ...]:
        """One protocol for each of `pairs`, and `protocols`."""
        return (*(Verification(path=path) for path in self.pairs), *self.protocols)
