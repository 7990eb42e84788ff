"""Objective aroface: a margin softmax on faces of which some are shifted, turned and scaled to
where the loss grows."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from manyfaces.configs.class_centres import ClassCentres
from manyfaces.configs.objectives.objective import ObjectiveCost, Sizes

Share = Annotated[float, Field(gt=0, le=1)]


class ARoFace(ClassCentres):
    """A margin softmax as `margin_softmax` has it, in which some images of each batch are warped
    against the network: their scale, angle and place take one step up the gradient of the loss
    (ARoFace, ECCV 2024). It is for faces that detectors align badly, small and blurred ones.

    The scale is that of the grid that is sampled: a face is shown smaller where it is above 1.
    Scales, angles (radians) and places (halves of the image's side) start near the image as it is.
    The step costs a forward pass and a backward pass of the warped images more, and a pass of the
    head over the classes that moves none of them.
    """

    kind: Literal["aroface"] = "aroface"
    target: ClassVar[str] = "manyfaces.train.objectives.aroface.ARoFace"

    share: Share = 0.25
    """Which part of each batch is shown warped, evenly spread over it. In the authors' program the
    warped ones are drawn besides those shown as they are, so that some images come twice in a batch
    and others never; here each comes once, as it is or warped."""
    step: PositiveFloat = 0.1
    """How far scale, angle and place go in the direction in which the loss grows."""
    jitter: NonNegativeFloat = 0.001
    """Standard deviation by which the step differs from batch to batch."""
    start: NonNegativeFloat = 0.01
    """Standard deviation of scale, angle and place before the step."""
    scale_range: tuple[float, float] = (-0.5, 1.5)
    """How far the scale may go down and up from where it started."""
    most_angle: PositiveFloat = 0.8
    """Largest angle, in radians."""
    most_shift: PositiveFloat = 0.3
    """Largest shift, in halves of the image's side."""

    def arguments(self) -> dict[str, Any]:
        return {"settings": self}

    def check(self, config: Any) -> None:
        super().check(config)
        if self.scale_range[0] > 0 or self.scale_range[1] < 0:
            raise ValueError(
                f"objective aroface: scale_range {list(self.scale_range)} has to go from 0 or "
                "below to 0 or above, as from -0.5 to 1.5"
            )
        if config.engine.zero_stage == 3:
            raise ValueError(
                "objective aroface needs the gradient of images outside of the step, which "
                "DeepSpeed does not give at stage 3; set engine.zero_stage=2"
            )
        if config.train.micro_batch_size is not None:
            raise ValueError(
                "objective aroface shows its warped images at once and does not go with "
                "train.micro_batch_size; leave it out"
            )

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        """That of the class centres, whose scores are computed twice; and the network's passes over
        the warped images: one forward, and one backward to the pixels."""
        once = super().cost(config, sizes)
        network = config.model.cost(config.data.image_hw).multiply_adds
        warped = -(-sizes.batch_size // sizes.world_size) * self.share
        return once + ObjectiveCost(
            flops=once.flops + int(2 * 2 * network * warped),
            traffic_bytes=once.traffic_bytes,
            wire_bytes=once.wire_bytes,
        )
