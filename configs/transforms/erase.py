"""Transform erase: a gray rectangle."""

from typing import ClassVar, Literal

from pydantic import PositiveInt, model_validator

from manyfaces.configs.transforms.transform import Transform, check_ordered


class Erase(Transform):
    """A random rectangle is painted gray (random erasing, arXiv 1708.04896)."""

    kind: Literal["erase"] = "erase"
    target: ClassVar[str] = "manyfaces.data.transforms.erase.Erase"
    side_px: tuple[PositiveInt, PositiveInt] = (16, 56)
    """Smallest and largest side of the erased rectangle, uniform."""

    @model_validator(mode="after")
    def _ordered(self) -> "Erase":
        check_ordered("side_px", self.side_px)
        return self
