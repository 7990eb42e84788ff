"""Protocol verification: do two images show one identity."""

from typing import Annotated, ClassVar, Literal

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol


class Verification(Protocol):
    """Pairs of images that show one identity or two, as LFW, CFP-FP and AgeDB-30 have them: 10-fold
    accuracy, best threshold, AUC and TAR at FAR."""

    kind: Literal["verification"] = "verification"
    target: ClassVar[str] = "manyfaces.train.protocols.verification.Verification"

    path: Annotated[str, PATH]
    """A verification set in InsightFace's layout (`.bin`)."""
    flip: Flip = "sum"
    """Whether an embedding is the sum of those of the image and its mirror image, as InsightFace's
    protocol has it, that of the image alone, or both one behind the other."""

    def named_after(self) -> str:
        return self.path
