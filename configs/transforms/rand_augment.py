"""Transform rand_augment: some operations in a row, each drawn anew."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.node import Probability
from manyfaces.configs.transforms.transform import Transform


class RandAugment(Transform):
    """Some of fourteen operations in a row at one strength (RandAugment, arXiv 1909.13719), with
    the ranges of torchvision's `RandAugment`. FRoundation (arXiv 2410.23831) fine-tunes with 4
    operations of magnitude 16."""

    kind: Literal["rand_augment"] = "rand_augment"
    target: ClassVar[str] = "manyfaces.data.transforms.rand_augment.RandAugment"

    p: Probability = 1.0
    """Probability that an image is changed."""
    num_ops: Annotated[int, Field(ge=1, le=8)] = 2
    """Operations in a row; one may be drawn several times, and one of them changes nothing."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of each, of 30: for example, a rotation of 30 is by 30 degrees."""
