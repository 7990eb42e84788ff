"""Transform flip: left and right exchanged."""

from typing import ClassVar, Literal

from manyfaces.configs.node import Probability
from manyfaces.configs.transforms.transform import Transform


class Flip(Transform):
    """A horizontal flip: the usual augmentation of faces."""

    kind: Literal["flip"] = "flip"
    target: ClassVar[str] = "manyfaces.data.transforms.flip.Flip"
    p: Probability = 0.5
    """Probability that an image is changed."""
