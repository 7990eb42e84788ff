"""The family of optimisers: how the network's weights follow its gradient."""

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat

from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import RESULTS, TENSORS, Decides, Node


class Group(Node):
    """Weights that are trained with a learning rate or a decay of their own."""

    match: Annotated[str, Field(min_length=1)]
    """Pattern of the weights' names, in which `*` stands for any text and `?` for one character:
    `layer4.*`, `*.bias`."""
    lr_scale: NonNegativeFloat = 1.0
    """Factor on their learning rate."""
    weight_decay: NonNegativeFloat | None = None
    """Their weight decay; without one they have the decay that they would have without the
    group."""


class Optimizer(Kind):
    """How the network's weights follow its gradient.

    `target` is a `torch.optim.Optimizer`, made with `params`, and with the fields but for
    `not_for_target`.
    """

    folder: ClassVar[str] = "manyfaces.configs.optimizers"
    config_key: ClassVar[str] = "train.optimizer"
    decides: ClassVar[Decides] = TENSORS
    not_for_target: ClassVar[tuple[str, ...]] = (
        "kind",
        "layer_decay",
        "decay_norms_and_biases",
        "groups",
    )

    lr: Annotated[PositiveFloat, RESULTS]
    """Largest learning rate."""
    weight_decay: Annotated[NonNegativeFloat, RESULTS]
    """Decay of the weights."""
    layer_decay: Annotated[Annotated[float, Field(gt=0, le=1)] | None, RESULTS] = None
    """Factor on the learning rate from each block of the network to the block before it, as BEiT
    (arXiv 2106.08254) fine-tunes; for a network that starts from trained weights."""
    decay_norms_and_biases: Annotated[bool, RESULTS] = True
    """Whether weight decay also acts on one-dimensional weights: biases, normalisation, PReLU."""
    groups: Annotated[tuple[Group, ...], RESULTS] = ()
    """Weights with a learning rate or a decay of their own; of several patterns that match a
    weight, the first counts."""

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the tensors that `target` keeps for each weight, each of the weight's shape."""
        raise NotImplementedError

    @property
    def num_states(self) -> int:
        """Numbers that are kept for each weight."""
        return len(self.moments)
