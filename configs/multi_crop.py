"""How pretraining without labels shows each image: two large parts of it and several small ones, as
DINO has them (arXiv 2104.14294; SwAV's multi-crop, arXiv 2006.09882)."""

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from manyfaces.configs.node import TENSORS, Node
from manyfaces.configs.transforms.blur import Blur
from manyfaces.configs.transforms.colour import Colour
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.gray import Gray
from manyfaces.configs.transforms.resized_crop import ResizedCrop
from manyfaces.configs.transforms.solarise import Solarise
from manyfaces.configs.transforms.transform import Transform, check_ordered

Share = Annotated[float, Field(gt=0, le=1)]
LocalPx = Annotated[int, Field(ge=16, le=1024)]
NUM_GLOBAL = 2
_LOCAL_SHARE = 3 / 7
"""Side of a local view as a share of a global one's: 96 of 224 pixels."""
_COLOURS = (
    Flip(),
    Colour(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2),
    Gray(p=0.2),
)


class MultiCrop(Node):
    """Two global views of the size `data.image_px`, and local ones. Every choice is a pure function
    of the seed, the position and the view. DINO's change of hue is left out."""

    global_scale: tuple[Share, Share] = (0.4, 1.0)
    """Smallest and largest area of a global view, as a share of the image's."""
    local_crops: NonNegativeInt = 8
    """Local views of an image."""
    local_scale: tuple[Share, Share] = (0.05, 0.4)
    """Smallest and largest area of a local view, as a share of the image's."""
    local_px: Annotated[LocalPx | tuple[LocalPx, LocalPx] | None, TENSORS] = None
    """Side of the square local views, or [height, width]; null is 3/7 of `data.image_px` for a
    network that takes images of any size, and else `data.image_px`."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.333)
    """Smallest and largest width / height of a part of the image."""
    first_augment: tuple[Transform, ...] = (*_COLOURS, Blur(p=1.0, sigma_px=(0.1, 2.0)))
    """Random changes of the first global view."""
    second_augment: tuple[Transform, ...] = (
        *_COLOURS,
        Blur(p=0.1, sigma_px=(0.1, 2.0)),
        Solarise(p=0.2),
    )
    """Random changes of the second global view."""
    local_augment: tuple[Transform, ...] = (*_COLOURS, Blur(p=0.5, sigma_px=(0.1, 2.0)))
    """Random changes of each local view."""

    @model_validator(mode="after")
    def _ordered(self) -> "MultiCrop":
        for name in ("global_scale", "local_scale", "ratio"):
            check_ordered(name, getattr(self, name))
        return self

    def local_hw(self, config: Any) -> tuple[int, int]:
        """Height and width of the local views."""
        px, image_hw = self.local_px, config.data.image_hw
        if isinstance(px, tuple):
            return px
        if px is not None:
            return px, px
        if not config.model.takes_any_size:
            return (image_hw[0], image_hw[1])
        return (round(image_hw[0] * _LOCAL_SHARE), round(image_hw[1] * _LOCAL_SHARE))

    def global_views(self) -> dict[str, tuple[Transform, ...]]:
        """The changes of each global view, by its name."""
        crop = ResizedCrop(scale=self.global_scale, ratio=self.ratio)
        both = (self.first_augment, self.second_augment)
        return {f"global_{n}": (crop, *each) for n, each in enumerate(both)}

    def local_views(self) -> dict[str, tuple[Transform, ...]]:
        """The changes of each local view, by its name."""
        crop = ResizedCrop(scale=self.local_scale, ratio=self.ratio)
        return {f"local_{n}": (crop, *self.local_augment) for n in range(self.local_crops)}

    def check(self, config: Any, word: str) -> None:
        """Raise `ValueError` where the network does not take the local views."""
        local_hw, image_hw = self.local_hw(config), config.data.image_hw
        if self.local_crops and local_hw != image_hw and not config.model.takes_any_size:
            raise ValueError(
                f"objective {word}: crops.local_px {self.local_px}, and model.kind "
                f"{config.model.word()} takes images of data.image_px only, as its embedding has "
                "weights for each position; set crops.local_px=null, which shows local views in "
                "that size, or a network that takes any (model.kind=vit model.pool=mean)"
            )
