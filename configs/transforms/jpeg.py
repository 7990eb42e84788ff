"""Transform jpeg: compressed again."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from manyfaces.configs.transforms.transform import Transform, check_ordered


class Jpeg(Transform):
    """The image is compressed again."""

    kind: Literal["jpeg"] = "jpeg"
    target: ClassVar[str] = "manyfaces.data.transforms.jpeg.Jpeg"
    quality: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (
        30,
        90,
    )
    """Lowest and highest quality of the compression, uniform."""

    @model_validator(mode="after")
    def _ordered(self) -> "Jpeg":
        check_ordered("quality", self.quality)
        return self
