"""Transform crop: a random part in full size."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.transforms.transform import Transform


class Crop(Transform):
    """A random part of the image is shown in full size; it has the proportions of the image."""

    kind: Literal["crop"] = "crop"
    target: ClassVar[str] = "manyfaces.data.transforms.crop.Crop"
    min_side: Annotated[float, Field(ge=0.2, le=1)] = 0.7
    """Smallest side of that part, as a share of the image's, uniform up to 1."""

    def has_effect(self) -> bool:
        return self.p > 0 and self.min_side < 1
