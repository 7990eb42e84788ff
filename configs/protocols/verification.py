"""Protocol verification: do two images show one identity."""

from typing import Annotated, ClassVar, Literal

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol


class Verification(Protocol):
    """Pairs of images that show one identity or two, as LFW, CFP-FP and AgeDB-30 have them: 10-fold
    accuracy, best threshold, EER, AUC and TAR at FAR, with 95 % intervals."""

    kind: Literal["verification"] = "verification"
    target: ClassVar[str] = "manyfaces.train.protocols.verification.Verification"

    path: Annotated[str, PATH]
    """A verification set in InsightFace's layout (`.bin`), or a list of pairs (`.txt`, `.csv`,
    `.tsv`): LFW's pairs.txt, lines `path path label`, or those of CALFW and CPLFW."""
    root: Annotated[str | None, PATH] = None
    """The folder that the images of a list are below, aligned as those of training are; null is the
    folder of the list."""
    flip: Flip = "sum"
    """Whether an embedding is the sum of those of the image and its mirror image, as InsightFace's
    protocol has it, that of the image alone, or both one behind the other."""
    interleave: bool = False
    """Deal genuine and impostor pairs to the ten folds, for files that hold all of one kind first,
    as those of CALFW and CPLFW do."""

    def named_after(self) -> str:
        return self.path
