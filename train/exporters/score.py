"""What an exported network scores on a verification set, beside the one that it was made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from manyfaces.configs.protocols.verification import Verification
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.result import Result, finite
from manyfaces.train.protocols.open import check_images, open_all

_BATCH, _TENTHS = 64, 10


@dataclass(frozen=True)
class Scored:
    """Two results of one protocol."""

    before: Result
    after: Result

    @property
    def name(self) -> str:
        """What the result is called."""
        return self.before.name

    def lines(self) -> list[str]:
        """Each number before and after, for people."""
        told = []
        for quantity in self.before.quantities:
            before, after = (each.scalars[quantity.name] for each in (self.before, self.after))
            line = f"{quantity.label} {quantity.text(before)} -> {quantity.text(after)}"
            known = finite(before), finite(after)
            if known[0] is not None and known[1] is not None and quantity.format.endswith("%"):
                line += f" ({100 * (known[1] - known[0]):+.2f} points)"
            told.append(line)
        return told


def scored(original: Encoder, written: Encoder, pairs: Path, tell: Callable[[str], None]) -> Scored:
    """The results of both on a verification set (`.bin`); `tell` is told at each tenth how far that
    is. Raises `UserError`."""
    [protocol] = open_all([Verification(path=str(pairs))])
    check_images([protocol], original.image_hw)
    total = 2 * len(protocol.distinct.images)
    done = 0

    def count(images: int) -> None:
        nonlocal done
        before, done = done, done + images
        if before * _TENTHS // total < done * _TENTHS // total:
            tell(f"scoring {pairs.name}: {done:,} of {total:,} images")

    before, after = (
        evaluate(protocol, Embedder.of(each, _BATCH), count) for each in (original, written)
    )
    return Scored(before, after)
