"""Objective dino: a network learns from its own moving average, without labels."""

from math import ceil, prod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from manyfaces.configs.multi_crop import NUM_GLOBAL, MultiCrop
from manyfaces.configs.node import TENSORS, Probability
from manyfaces.configs.objectives.objective import Objective, ObjectiveCost, Sizes
from manyfaces.configs.precision import precision
from manyfaces.configs.transforms.flip import Flip

Momentum = Annotated[float, Field(ge=0, lt=1)]
SINKHORN_ROUNDS = 3


class SelfDistillation(Objective):
    """What `dino` and `ibot` have in common: views of each image, a projection head on one of the
    backbone's embeddings, and a teacher, the moving average of both."""

    crops: MultiCrop = MultiCrop()
    """How each image is shown."""
    prototypes: Annotated[PositiveInt, TENSORS] = 65536
    """Numbers that the projection head gives, on which the softmax is: DINO's `out_dim`. A few
    thousand for a few thousand images."""
    hidden_dim: Annotated[PositiveInt, TENSORS] = 2048
    """Width of the two hidden layers of the projection head."""
    bottleneck_dim: Annotated[PositiveInt, TENSORS] = 256
    """Numbers of the unit vectors that the prototypes are compared with."""
    student_temperature: PositiveFloat = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: PositiveFloat = 0.04
    """Temperature of the teacher's softmax; 0.07 behind a warm-up for large sets."""
    warmup_teacher_temperature: PositiveFloat = 0.04
    """Temperature of the teacher's softmax at the start."""
    warmup_teacher_epochs: NonNegativeFloat = 0.0
    """Passes over the dataset in which it rises linearly to `teacher_temperature`."""
    momentum: Momentum = 0.996
    """What of the teacher is kept at the first step: (1 - momentum) comes from the student. It
    rises to 1 at the run's last sample, as half a cosine."""
    freeze_prototypes_epochs: NonNegativeFloat = 1.0
    """Passes over the dataset in which the prototypes stay as they are, which keeps the start
    stable."""

    centring: Literal["mean", "sinkhorn"] = "mean"
    """What keeps the teacher from giving all images one prototype: `mean` subtracts a running mean
    of its outputs over all workers (DINO); `sinkhorn` balances the batch of all workers by three
    rounds of Sinkhorn-Knopp (SwAV, DINOv2)."""
    center_momentum: Probability = 0.9
    """What is kept of the running mean at each step."""
    koleo_weight: NonNegativeFloat = 0.0
    """Factor of the KoLeo regulariser (arXiv 1806.03198), which spreads the unit embeddings of a
    global view: minus the mean logarithm of the distance to the nearest in the batch of all
    workers; DINOv2 has 0.1, over the batch of each GPU."""

    def head_parameters(self, dim: int) -> int:
        """Parameters of one projection head on embeddings of so many numbers."""
        hidden, out = self.hidden_dim, self.bottleneck_dim
        layers = (dim + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * out
        return layers + self.prototypes * out

    def arguments(self) -> dict[str, Any]:
        return {"settings": self}

    def check(self, config: Any) -> None:
        word = str(self.word())
        self.crops.check(config, word)
        if config.model.adapters:
            raise ValueError(
                f"objective {word} trains a copy of the whole backbone; set model.adapters=[]"
            )
        if config.train.micro_batch_size is not None:
            raise ValueError(
                f"objective {word} shows several views to two networks in one step, which "
                "train.micro_batch_size does not divide; set it to null and take a smaller batch"
            )
        if config.objective is self and config.data.augment != (Flip(),):
            raise ValueError(
                f"data.augment is not read: objective {word} shows its own views; change "
                "objective.crops, and leave data.augment out"
            )

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        """Everything beside one view of the student's backbone, which the plan counts in any case:
        the other views, both projection heads, and the teacher, whose weights are sharded as those
        of the student are: over all workers at stage 3, and else not at all."""
        share = ceil(sizes.batch_size / sizes.world_size)
        hw, local_hw = config.data.image_hw, self.crops.local_hw(config)
        model, local = config.model.cost(hw), config.model.cost(local_hw)
        num_local = self.crops.local_crops
        views = NUM_GLOBAL + num_local
        head, stage = self.head_parameters(sizes.dim), config.engine.zero_stage
        states = config.train.optimizer.num_states

        def held(numbers: int, from_stage: int) -> int:
            return 4 * (ceil(numbers / sizes.world_size) if stage >= from_stage else numbers)

        device = held(model.parameters + head, 3) + held(head, 3) + held(head, 2)
        device += held(states * head, 1) + 4 * self.prototypes
        item = 2 if precision(config.train, is_gpu=sizes.is_gpu) == "bfloat16" else 4
        activations = (NUM_GLOBAL - 1) * model.activations + num_local * local.activations
        # Logits and their softmax for each view, in float32.
        outputs = 4 * share * self.prototypes * (2 * views + 2 * NUM_GLOBAL)
        pixels = 3 * share * (NUM_GLOBAL * prod(hw) + num_local * prod(local_hw))
        passes = 3 * ((NUM_GLOBAL - 1) * model.multiply_adds + num_local * local.multiply_adds)
        passes += NUM_GLOBAL * model.multiply_adds + (3 * views + NUM_GLOBAL) * head
        ring = (sizes.world_size - 1) / sizes.world_size
        return self._spread_cost(sizes) + ObjectiveCost(
            parameters=head,
            state_bytes=4 * (model.parameters + (2 + states) * head + self.prototypes),
            device_bytes=device,
            workspace_bytes=share * item * activations + outputs + pixels,
            flops=2 * share * passes,
            wire_bytes=round(ring * (2 * 4 * head + 2 * 8 * self.told_numbers())),
        )

    def told_numbers(self) -> int:
        """Numbers that the workers add up in a step."""
        rounds = SINKHORN_ROUNDS if self.centring == "sinkhorn" else 0
        return (2 + rounds) * self.prototypes

    def _spread_cost(self, sizes: Sizes) -> ObjectiveCost:
        """The cost of KoLeo: unit embeddings of all workers for each global view, and their
        cosines."""
        rows = NUM_GLOBAL * sizes.batch_size if self.koleo_weight else 0
        ring = (sizes.world_size - 1) / sizes.world_size
        return ObjectiveCost(
            workspace_bytes=4 * rows * (3 * sizes.dim + sizes.batch_size),
            flops=2 * rows * sizes.batch_size * sizes.dim,
            wire_bytes=round(ring * 4 * rows * (sizes.dim + 1)),
        )

    def state_names(self) -> tuple[str, ...]:
        return ("dino",)


class DINO(SelfDistillation):
    """Self-distillation without labels (DINO, arXiv 2104.14294): the softmax of the student's
    projection of every view is to be that of the teacher's projection of the other global view.
    The teacher is the moving average of the student.

    The network that is evaluated and exported is the teacher's backbone, and a checkpoint has it as
    `backbone.safetensors`. The teacher is sharded as the student is: at ZeRO stage 3 each worker
    holds a part of it, and below each holds all. The metrics tell a collapse:
    `teacher_mean_entropy` falls to 0 where all images are given the same prototype, and
    `teacher_entropy` rises to the logarithm of their number where each is given all alike. The
    weight decay does not rise as DINO's does."""

    kind: Literal["dino"] = "dino"
    target: ClassVar[str] = "manyfaces.train.objectives.dino.DINO"
