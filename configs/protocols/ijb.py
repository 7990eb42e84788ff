"""Protocol ijb: templates of several images, compared one to one and searched for in galleries."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.aggregations.aggregation import Aggregation
from manyfaces.configs.aggregations.media_mean import MediaMean
from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Protocol


class IJB(Protocol):
    """IJB-B and IJB-C in the layout that InsightFace ships: TAR at FAR 1e-6 to 1e-1 of templates
    (1:1), and rank-1 to rank-10 and TPIR at FPIR of probes against two galleries (1:N)."""

    kind: Literal["ijb"] = "ijb"
    target: ClassVar[str] = "manyfaces.train.protocols.ijb.IJB"

    root: Annotated[str, PATH]
    """The folder that has the set's `loose_crop` and `meta`."""
    set: Literal["IJBB", "IJBC"] = "IJBC"
    """Which of the two sets it is, and so what its files are called."""
    tasks: Annotated[tuple[Literal["verification", "identification"], ...], Field(min_length=1)] = (
        "verification",
    )
    """Whether pairs of templates are compared (1:1), probes are searched for in two galleries
    (1:N), or both; the images are embedded once."""
    flip: Literal["none", "sum"] = "sum"
    """Whether an embedding is the sum of those of the image and its mirror image (F2), or that of
    the image alone (F0)."""
    aggregation: Aggregation = MediaMean()
    """How the images of a template become one vector."""
    also: tuple[Aggregation, ...] = ()
    """Further aggregations of the same embeddings, whose figures stand beside in a table."""

    def named_after(self) -> str | None:
        return f"{self.root}/{self.set.lower()}"
