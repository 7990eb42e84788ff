"""The two passes over the class rows, chunk by chunk, of a margin softmax whose classes are spread
over ranks: what they compute, and what they hand to each other.

Let z be cosines, t = s f(z_target) and L the log-sum-exp of s z over all columns but the target's.
Then

    loss = softplus(L - t)        1 - p_target = sigmoid(L - t)
    d loss / d (s z) = exp(s z - logaddexp(L, t)) off the target

Nowhere is the target among the summands: logaddexp(L, t) - t would cancel, to a loss of 0 for
well-learnt samples. A margin may transform the other classes' z before, or take the sum of
softplus(s z) instead of L (a binary margin): then t and the others each have a loss of their own.
Of K sub-centres of a class the nearest gives z and gets the gradient.

Pass 1 (`pass1.py`) makes L, pass 2 (`pass2.py`) the gradients and the rows' update. Both work on
the cosines of one chunk at a time, in float32. Pass 1 drops them and pass 2 makes them anew
(`recompute`), or pass 1 keeps d L / d z of the chunk in float16, in the sample's own unit
(`store16`, `stored_scores.py`): half the bytes of float32 logits.

Shapes: B the places of the global batch (padding included), D the embedding, n the rows of a chunk,
K sub-centres.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from manyfaces.models.head.rows import Rows, StepMask
from manyfaces.models.head.sampling import Columns
from manyfaces.models.margins.margin import NegativeTransform

LOG2_E = 1 / math.log(2)
"""Exponents are in bits: on CPU torch's exp2 takes a quarter of the time of its exp, which asks
MKL."""


class Scoring(NamedTuple):
    """How cosines with other classes become a loss."""

    scale: float
    transform: NegativeTransform | None = None
    """What becomes of the cosines before; None leaves them as they are."""
    binary: bool = False
    """Whether logistic losses add up, in place of a softmax."""
    largest_logit: float = 1.0
    """The largest logit of a class, in units of the scale."""


class PassInputs(NamedTuple):
    """What both passes work on."""

    sub_centers: Sequence[Rows]
    """Rows of the classes that take part: the k-th item holds the k-th row of every class."""
    unit_BD: Tensor
    """float32: unit embeddings."""
    columns: Columns
    scoring: Scoring


class ChunkCache(NamedTuple):
    """What pass 1 keeps of one chunk for pass 2; all but the norms only if scores are stored."""

    inverse_norms_Kn: Tensor
    """float32: 1 / |row| of each sub-centre."""
    unit_bits_B: Tensor | None = None
    """float32: log2 of the unit of each sample's derivatives."""
    derivatives_Bn: Tensor | None = None
    """float16: exp(s f(z)) f'(z) in the sample's unit, of a binary loss sigmoid(s f(z)) f'(z); 0 at
    the target."""
    nearer: tuple[Tensor, ...] = ()
    """uint8 [B, n] for each sub-centre but the first: 1 where it is nearer than all before it."""


class NegativeSums(NamedTuple):
    """Sums over one rank's columns without the targets'."""

    sum_B: Tensor
    """float64: sum of exp(s z), for s up to 512 within its range; of a binary loss that of log(1 +
    exp(s z))."""
    derivative_B: Tensor | None
    """float64: of a binary loss, the sum of the summands' derivatives by s z; of a softmax they are
    the summands themselves."""
    nearest_B: Tensor | None
    """float32: cosine of the nearest class, before any transform; -inf where there is none. None
    where not asked for."""
    chunks: list[ChunkCache]


class TargetCosines(NamedTuple):
    """The cosines of the batch's samples with their own classes, so far as those are here."""

    cosine_B: Tensor
    """float64; 0 elsewhere."""
    num_owners_B: Tensor
    """float64: 1 where the class is here, else 0."""
    sub_center_B: Tensor
    """int64: the sub-centre that is nearest."""


class GlobalLoss(NamedTuple):
    """The loss over all ranks and its derivatives, the same on each rank; float64 [B] where not
    said otherwise."""

    loss: Tensor
    """Mean over valid labels, float64 []."""
    finite: Tensor
    """bool []: the loss is a number."""
    one_owner: Tensor
    """bool []: each valid label is a row of exactly one rank."""
    active_B: Tensor
    """bool: samples that send gradients; none where the step is called off."""
    target_cosine_B: Tensor
    """Cosine with the own class."""
    log_derivative_B: Tensor
    """log of the sum of the derivatives by s z over all ranks; of a softmax, of the sum of
    exponentials."""
    log_factor_B: Tensor
    """d loss / d f = exp(s f + log_factor) off the target; of a binary loss sigmoid(s f)
    exp(log_factor)."""
    d_target_B: Tensor
    """d loss / d z at the target."""
    d_norm_B: Tensor | None
    """d loss / d |embedding|, where a margin looks at it."""
    d_bias: Tensor
    """d loss / d a number added to all logits, float64 []; of a binary loss."""


class Pass1(Protocol):
    """Sums over the other classes: `pass1.sum_negatives` or `triton_passes.sum_negatives`."""

    def __call__(self, inputs: PassInputs, *, store: bool, nearest: bool) -> NegativeSums: ...


class Pass2(Protocol):
    """Gradients and update: `pass2.update_rows` or `triton_passes.update_rows`."""

    def __call__(
        self,
        inputs: PassInputs,
        loss: GlobalLoss,
        chunks: list[ChunkCache],
        sub_center_B: Tensor,
        mask: StepMask,
    ) -> Tensor: ...


class Passes(NamedTuple):
    """One implementation of both."""

    sum_negatives: Pass1
    update_rows: Pass2
