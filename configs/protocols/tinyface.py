"""Protocol tinyface: small faces, found among distractors."""

from typing import Annotated, ClassVar, Literal

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol


class TinyFace(Protocol):
    """TinyFace: rank-1, rank-5 and rank-20 of probes among the matching gallery and its
    distractors, any image of the right identity being a hit."""

    kind: Literal["tinyface"] = "tinyface"
    target: ClassVar[str] = "manyfaces.train.protocols.tinyface.TinyFace"

    path: Annotated[str, PATH]
    """`Testing_Set`, with `probe_img_ID_pairs.mat` and `gallery_match_img_ID_pairs.mat`, or the
    folder above it."""
    images: Annotated[str | None, PATH] = None
    """The folder with `Probe`, `Gallery_Match` and `Gallery_Distractor`, where that is another one,
    as for images that were aligned; how they are aligned changes the figures."""
    flip: Flip = "sum"
    """What an embedding is of: the image, or its mirror image as well."""
