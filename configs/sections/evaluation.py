"""Section `evaluation`: what a run is scored by, and when."""

from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeInt, PositiveInt

from manyfaces.configs.node import NOTHING, Decides, Node
from manyfaces.configs.protocols.protocol import Protocol
from manyfaces.configs.protocols.verification import Verification


class Evaluation(Node):
    """What a run is scored by, and when; it may change when a run is resumed."""

    decides: ClassVar[Decides] = NOTHING

    pairs: tuple[str, ...] = ()
    """Verification sets (InsightFace `.bin`): each is short for a protocol of kind verification."""
    protocols: tuple[Protocol, ...] = ()
    """Protocols of any kind, besides `pairs`."""
    every_steps: NonNegativeInt = 0
    """Steps between evaluations in training; 0 is at the end only."""
    batch_size: PositiveInt = 200
    """Images that each worker embeds at a time."""

    def all_protocols(self) -> tuple[Protocol, ...]:
        """One protocol for each of `pairs`, and `protocols`."""
        return (*(Verification(path=path) for path in self.pairs), *self.protocols)

    def absolute(self) -> "Evaluation":
        """The same with absolute paths, as workers may stand in another folder than the person
        did."""
        return self.model_copy(
            update={
                "pairs": tuple(str(Path(path).absolute()) for path in self.pairs),
                "protocols": tuple(protocol.absolute() for protocol in self.protocols),
            }
        )
