"""Objective ibot: DINO, and beside it hidden patches whose tokens are to be found."""

from math import ceil
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, model_validator

from manyfaces.configs.multi_crop import NUM_GLOBAL
from manyfaces.configs.node import Probability
from manyfaces.configs.objectives.dino import SelfDistillation
from manyfaces.configs.objectives.objective import ObjectiveCost, Sizes
from manyfaces.configs.transforms.transform import check_ordered


class IBOT(SelfDistillation):
    """`dino`, and beside it masked tokens (iBOT, arXiv 2111.07832, as DINOv2 has them, arXiv
    2304.07193): in the student's global views blocks of patches are hidden behind the mask token,
    and the softmax of a second projection head on their tokens is to be that of the teacher, which
    sees all. For transformers that can hide tokens (`model.kind=vit`, with `model.mask_ratio=0`).

    Evaluated, exported and kept in a checkpoint is what `dino` has."""

    kind: Literal["ibot"] = "ibot"
    target: ClassVar[str] = "manyfaces.train.objectives.ibot.IBOT"

    patch_weight: PositiveFloat = 1.0
    """Factor of the patches' loss beside that of the images; `weight` is one of both."""
    mask_probability: Probability = 0.5
    """Probability that patches of a global view are hidden."""
    mask_ratio: tuple[Probability, Probability] = (0.1, 0.5)
    """Smallest and largest share of its patches that are hidden then, uniform."""

    @model_validator(mode="after")
    def _ratio_is_ordered(self) -> "IBOT":
        check_ordered("mask_ratio", self.mask_ratio)
        return self

    def state_names(self) -> tuple[str, ...]:
        return (*super().state_names(), "ibot")

    def check(self, config: Any) -> None:
        super().check(config)
        if getattr(config.model, "mask_ratio", 0):
            raise ValueError(
                f"objective ibot hides tokens itself, and model.mask_ratio "
                f"{config.model.mask_ratio:g} would take others out; set model.mask_ratio=0"
            )

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        """What `dino` costs, and a second head for student and teacher on the hidden tokens."""
        shape = config.model.transformer(config.data.image_hw)
        if not shape.width:
            return super().cost(config, sizes)
        head, stage = self.head_parameters(shape.width), config.engine.zero_stage
        states = config.train.optimizer.num_states
        share = ceil(sizes.batch_size / sizes.world_size)
        hidden = self.mask_probability * sum(self.mask_ratio) / 2
        rows = ceil(NUM_GLOBAL * share * hidden * config.model.num_tokens(config.data.image_hw))

        def held(numbers: int, from_stage: int) -> int:
            return 4 * (ceil(numbers / sizes.world_size) if stage >= from_stage else numbers)

        ring = (sizes.world_size - 1) / sizes.world_size
        return super().cost(config, sizes) + ObjectiveCost(
            parameters=head,
            state_bytes=4 * ((2 + states) * head + self.prototypes),
            device_bytes=held(2 * head, 3) + held(head, 2) + held(states * head, 1),
            workspace_bytes=4 * 4 * rows * self.prototypes,
            flops=2 * rows * 4 * head,
            wire_bytes=round(ring * (2 * 4 * head + 2 * 8 * self.told_numbers())),
        )
