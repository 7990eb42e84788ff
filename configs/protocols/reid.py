"""Protocol reid: the same person before another camera."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, PositiveInt, model_validator

from manyfaces.configs.node import PATH, Probability
from manyfaces.configs.protocols.protocol import Flip, Protocol

MARKET = r"(?P<identity>-?\d+)_c(?P<camera>\d+)"


def _with_groups(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    if not {"identity", "camera"} <= groups.keys():
        raise ValueError(f"{pattern!r} needs the groups (?P<identity>..) and (?P<camera>..)")
    return pattern


class ReIdentification(Protocol):
    """Person re-identification by the rules of Market-1501: gallery images of the query's identity
    from its own camera count for nothing, those of identity -1 are left out, and a query without a
    match is none. Mean average precision by both definitions, CMC, and mINP.

    Images are resized to the height and width that the network takes."""

    kind: Literal["reid"] = "reid"
    target: ClassVar[str] = "manyfaces.train.protocols.reid.ReIdentification"

    query: Annotated[str, PATH]
    """The queries: a folder of images whose names tell person and camera, a CSV with the columns
    path, identity and camera, or a text list of these with tabs between."""
    gallery: Annotated[str, PATH]
    """The gallery, likewise."""
    name_pattern: Annotated[str, AfterValidator(_with_groups)] = MARKET
    """How file names begin, as a regular expression with the groups `identity` and `camera`; those
    of Market-1501 and DukeMTMC by default. MSMT17's are `(?P<identity>\\d+)_\\d+_(?P<camera>\\d+)`,
    and its identities are those of its lists."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """Between embeddings of length 1, or between embeddings as they are."""
    flip: Flip = "none"
    """What an embedding is of: the image, or its mirror image as well."""
    re_rank: bool = False
    """Re-rank by k-reciprocal neighbours as well; these figures stand beside the others and are
    never to be compared with them."""
    k1: PositiveInt = 20
    """Neighbours that re-ranking looks at."""
    k2: PositiveInt = 6
    """Neighbours over whose sets it averages."""
    original_weight: Probability = 0.3
    """What the original distance weighs in the re-ranked one."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.re_rank and self.distance != "cosine":
            raise ValueError("re_rank goes with distance: cosine only")
        if self.k2 > self.k1:
            raise ValueError(f"k2 {self.k2} is above k1 {self.k1}; give k1 or less")
        return self
