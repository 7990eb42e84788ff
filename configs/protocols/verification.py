"""Protocol verification: do two images show one identity."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Protocol
from manyfaces.configs.redact import redact


class Verification(Protocol):
    """Pairs of images that show one identity or two, as LFW, CFP-FP and AgeDB-30 have them: 10-fold
    accuracy, best threshold, AUC and TAR at FAR."""

    kind: Literal["verification"] = "verification"
    target: ClassVar[str] = "manyfaces.train.protocols.verification.Verification"

    path: Annotated[str, PATH]
    """A verification set in InsightFace's layout (`.bin`)."""
    flip: Literal["sum", "none"] = "sum"
    """Whether an embedding is the sum of those of the image and its mirror image, as InsightFace's
    protocol has it, or that of the image alone."""

    def called(self) -> str:
        return self.result_name or Path(redact(self.path)).stem
