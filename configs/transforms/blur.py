"""Transform blur: a Gaussian blur."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat, model_validator

from manyfaces.configs.transforms.transform import Transform, check_ordered


class Blur(Transform):
    """A Gaussian blur."""

    kind: Literal["blur"] = "blur"
    target: ClassVar[str] = "manyfaces.data.transforms.blur.Blur"
    sigma_px: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Smallest and largest standard deviation of the blur, uniform."""

    @model_validator(mode="after")
    def _ordered(self) -> "Blur":
        check_ordered("sigma_px", self.sigma_px)
        return self
