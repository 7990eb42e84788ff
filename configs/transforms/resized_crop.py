"""Transform resized_crop: a random part of an image, of any size and proportions."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from manyfaces.configs.node import Probability
from manyfaces.configs.transforms.transform import Transform, check_ordered

Share = Annotated[float, Field(gt=0, le=1)]


class ResizedCrop(Transform):
    """A random part of the image is shown in full size, as pretraining without labels has it
    (Inception's crop, arXiv 1409.4842). Where it stands first in the list it takes the part from
    the image as it is stored, with all its pixels, and resamples once."""

    kind: Literal["resized_crop"] = "resized_crop"
    target: ClassVar[str] = "manyfaces.data.transforms.resized_crop.ResizedCrop"
    p: Probability = 1.0
    """Probability that an image is changed."""
    scale: tuple[Share, Share] = (0.4, 1.0)
    """Smallest and largest area of that part, as a share of the image's, uniform."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.333)
    """Smallest and largest width / height of that part in pixels of an image that has the view's
    proportions, uniform in the logarithm. A ratio with which the part would not fit into the image
    is not drawn; where none fits, the nearest one that does is taken."""

    @model_validator(mode="after")
    def _ordered(self) -> "ResizedCrop":
        check_ordered("scale", self.scale)
        check_ordered("ratio", self.ratio)
        return self
