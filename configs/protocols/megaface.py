"""Protocol megaface: is a mate found among up to a million distractors."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol


class MegaFace(Protocol):
    """MegaFace's first challenge: of each two images of a person, is the second found first among
    the distractors when the first is searched for. With the two lists of noise it is the refined
    set ("MegaFace (R)"), without them the raw one; their figures are not comparable.

    Probes and distractors are folders of images, or of the `.bin` files of embeddings that the
    devkit takes, or any other list that protocol identification takes."""

    kind: Literal["megaface"] = "megaface"
    target: ClassVar[str] = "manyfaces.train.protocols.megaface.MegaFace"

    probes: Annotated[str, PATH]
    """The images of FaceScrub: a folder for each person."""
    distractors: Annotated[tuple[str, ...], PATH]
    """Images of other people, one or several lists."""
    probe_noise: Annotated[str | None, PATH] = None
    """`facescrub_noises.txt` of InsightFace: a file name a line."""
    distractor_noise: Annotated[str | None, PATH] = None
    """`megaface_noises.txt` of InsightFace: the last three parts of a path a line."""
    flip: Flip = "sum"
    """What an embedding is of: the image, or its mirror image as well."""

    @model_validator(mode="after")
    def _has_both_lists(self) -> Self:
        if (self.probe_noise is None) != (self.distractor_noise is None):
            raise ValueError(
                "the refined set needs both probe_noise and distractor_noise; give both, or none "
                "for the raw set"
            )
        return self
