"""What a margin is: what is done to the cosines between embeddings and class rows before they
become a loss.

A margin says what becomes of the cosine z = cos(theta) between an embedding and its own class: the
target logit f(z), in units of the scale s, and its derivative. Both are worked out on the B target
cosines of a batch alone, in float64, so that precision costs nothing and no matrix of angles is
ever made. A margin that moves the cosines with other classes too has a `NegativeTransform` for
them. The loss is the softmax cross entropy of these logits; a `binary` margin takes a logistic loss
of each class instead.

To add a margin, write a subclass of `Margin` with `target` in a file of this folder and its schema
in `configs/margins/`. A margin of one's own may stand in any file, from which
`head.margin={kind: custom, file: halved.py, name: Halved, parameters: {m: 0.2}}` takes it:

    import torch
    from manyfaces.models.margins.margin import Margin, Target

    class Halved(Margin):  # the target cosine loses m of what it lacks to 1
        def __init__(self, m: float = 0.3) -> None:
            self.m = m

        def target(self, cosine_B, norm_B):
            return Target(cosine_B - self.m * (1 - cosine_B), torch.full_like(cosine_B, 1 + self.m))

`curricularface.py` shows one that moves other classes too.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

_SMALLEST_SINE = 1e-6
"""Sines are kept above this: f' grows as 1 / sin(theta) towards theta = 0, where the gradient that
it multiplies vanishes."""

State = dict[str, Tensor]


class Target(NamedTuple):
    """What a margin makes of the target cosines of B samples; all tensors are float64 [B]."""

    value_B: Tensor
    """f: the target logit in units of the scale."""
    slope_B: Tensor
    """df / d cosine."""
    by_norm_B: Tensor | None = None
    """df / d |embedding|; None where the norm does not matter, or is taken as given."""
    extra_B: Tensor | None = None
    """A term that is added to the sample's loss."""
    d_extra_B: Tensor | None = None
    """d extra / d |embedding|."""


class NegativeTransform(Protocol):
    """What becomes of the cosines with other classes than the own: float32 [B, n], or [m] after
    `for_samples`. Its methods may overwrite `cosines`."""

    def logits(self, cosines: Tensor) -> Tensor:
        """The logits in units of the scale, from -1 to the margin's `largest_logit`; far below -1
        where a class is to be left out. Same shape and dtype as `cosines`."""

    def logits_and_slopes(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and d logit / d cosine, which may be a scalar tensor."""

    def for_samples(self, samples_m: Tensor) -> "NegativeTransform":
        """The same transform for [m] cosines, each of the sample with this number, int64."""


class Margin(ABC):
    """One margin object serves one head for a run."""

    needs_target_cosines: ClassVar[bool] = False
    """Whether `observe` and `negative_transform` are given the target cosines of the whole batch:
    they then have to be known before the negatives are scored, by one collective more."""
    largest_logit: float = 1.0
    """The largest logit of another class, in units of the scale."""
    binary: tuple[float, float] | None = None
    """For a logistic loss of each class: the weights of the own class's loss and of the sum over
    the other classes. None is the softmax cross entropy."""
    state: State
    """Running numbers, float64 [], the same on all ranks; checkpoints keep them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        margin = super().__new__(cls)
        margin.state = {}  # here, as the `__init__` of a person's own margin need not call ours
        return margin

    def __init_subclass__(cls) -> None:
        """Raise `TypeError` for names of former versions, which nothing would call any more."""
        super().__init_subclass__()
        for old, new in _FORMER_NAMES.items():
            if old in vars(cls):
                raise TypeError(f"{cls.__name__}.{old} is called {new} now; rename it")

    def begin(self, scale: float, num_classes: int) -> None:
        """Take over what the head knows and the configuration of the margin does not: the factor
        `scale` of the logits and the number of classes over all ranks. The head calls it once,
        before any step and before a checkpoint's state is loaded."""
        return

    @abstractmethod
    def target(self, cosine_B: Tensor, norm_B: Tensor) -> Target:
        """The target logits for target cosines in [-1, 1] and embedding norms, both float64 [B].
        Ignored samples are among them and may be anything."""

    def observe(self, cosine_B: Tensor | None, norm_B: Tensor, valid_B: Tensor) -> State:
        """The state with which this batch is scored. `cosine_B` (float64 [B]) is given only if the
        margin needs target cosines; `valid_B` (bool [B]) marks the samples that count. The head
        keeps the state unless the step is called off."""
        return self.state

    def negative_transform(self, cosine_B: Tensor | None) -> NegativeTransform | None:
        """The transform of other classes' cosines for this batch; None leaves them as they are.
        `cosine_B` as in `observe`."""
        return None

    def learn(self, d_bias: Tensor, lr: Tensor, momentum: float) -> State:
        """The state after the step. `d_bias` (float64 []) is the derivative of a logistic loss by a
        number added to all logits, `lr` (float32 []) the learning rate of the rows."""
        return self.state

    @property
    def is_plain_softmax(self) -> bool:
        """Whether the loss is a softmax in which other classes' cosines stay as they are."""
        overridden = type(self).negative_transform is not Margin.negative_transform
        return not overridden and self.binary is None


_FORMER_NAMES = {"bend": "negative_transform", "looks_first": "needs_target_cosines"}


def angle(cosine_B: Tensor) -> tuple[Tensor, Tensor]:
    """The angle in radians and its sine, which is kept off zero."""
    sine_B = (1 - cosine_B.square()).clamp(min=_SMALLEST_SINE**2).sqrt()
    return torch.atan2(sine_B, cosine_B), sine_B


def above(values: Tensor, threshold: Tensor | float) -> Tensor:
    """1 where `values` are above the threshold, 0 elsewhere, in their dtype: one pass over memory.
    On CPU torch's comparisons that give bool take four times as long, its `where` and `masked_fill`
    thirty times."""
    return torch.gt(values, threshold, out=torch.empty_like(values))


def mean(values_B: Tensor, valid_B: Tensor) -> Tensor:
    """The mean over valid samples; 0 where there are none."""
    return torch.where(valid_B, values_B, 0).sum() / valid_B.sum().clamp(min=1)


def number(value: float) -> Tensor:
    """A number as `Margin.state` holds it."""
    return torch.tensor(value, dtype=torch.float64)
