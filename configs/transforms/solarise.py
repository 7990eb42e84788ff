"""Transform solarise: bright pixels inverted."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.transforms.transform import Transform


class Solarise(Transform):
    """Every number of a pixel that is not below the threshold is inverted (BYOL's augmentation,
    arXiv 2006.07733)."""

    kind: Literal["solarise"] = "solarise"
    target: ClassVar[str] = "manyfaces.data.transforms.solarise.Solarise"
    threshold: Annotated[int, Field(ge=0, le=255)] = 128
    """The smallest number, of 0 to 255, that is inverted."""
