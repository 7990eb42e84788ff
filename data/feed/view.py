"""A view: how each image of a batch is shown. An objective may want several of the same images."""

from dataclasses import dataclass

from manyfaces.configs import schema


@dataclass(frozen=True)
class View:
    """The size of the shown images and their random changes."""

    image_hw: tuple[int, int]
    """Height and width in pixels; images of other sizes are resized."""
    augment: tuple[schema.Transform, ...]


def main_view(config: schema.Data) -> View:
    """The view that the settings `data.image_px` and `data.augment` describe."""
    return View(config.image_hw, config.augment)
