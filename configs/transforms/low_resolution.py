"""Transform low_resolution: smaller and large again."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from manyfaces.configs.transforms.transform import Transform, check_ordered


class LowResolution(Transform):
    """The image is made smaller and large again (AdaFace's augmentation, arXiv 2204.00964)."""

    kind: Literal["low_resolution"] = "low_resolution"
    target: ClassVar[str] = "manyfaces.data.transforms.low_resolution.LowResolution"
    side_px: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = (22, 112)
    """Smallest and largest shorter side in between, uniform."""

    @model_validator(mode="after")
    def _ordered(self) -> "LowResolution":
        check_ordered("side_px", self.side_px)
        return self
