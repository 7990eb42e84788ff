"""The family of transforms: random changes of an image."""

from typing import ClassVar

from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import Probability


class Transform(Kind):
    """A random change of an image, a pure function of (seed, position).

    `target` is a subclass of `manyfaces.data.transforms.transform.Transform`, made with the
    settings.
    """

    folder: ClassVar[str] = "manyfaces.configs.transforms"
    config_key: ClassVar[str] = "data.augment"
    usual_order: ClassVar[tuple[str, ...]] = (
        "resized_crop",
        "mask",
        "misalign",
        "flip",
        "rand_augment",
        "crop",
        "colour",
        "gray",
        "blur",
        "solarise",
        "low_resolution",
        "jpeg",
        "erase",
    )

    p: Probability
    """Probability that an image is changed."""

    def has_effect(self) -> bool:
        """Whether it can ever change an image. One that cannot is left out of the list."""
        return self.p > 0


def check_ordered(name: str, bounds: tuple[float, float]) -> None:
    """Raise `ValueError` where the lower bound is above the upper one."""
    low, high = bounds
    if low > high:
        raise ValueError(f"{name}: the smallest {low} is above the largest {high}")
