"""What ranks tell each other of a global batch before a loss over all its embeddings, and how the
gradient comes back.

Rank r holds samples [r B // W, (r + 1) B // W) of a global batch of B. On the wire each share is
padded to P = ceil(B / W) places with label -1, so that the collectives are even; the shared batch
has W P places.

Shapes: N this rank's samples, B the places of the shared batch, D the embedding, X the embedding
and its norm on the wire.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manyfaces.configs.split import batch_share
from manyfaces.models.head.collectives import Ranks

SHORTEST_EMBEDDING = 1e-12
"""Embeddings are divided by no less than this."""


class Told(NamedTuple):
    """What every rank knows of a global batch before its embeddings."""

    labels_B: Tensor
    """int64: -1 for ignored samples and padding."""
    weights_B: Tensor | None
    """As in `Shared`."""
    last: Tensor
    """bool []: some rank said that it can make no further step."""


class Shared(NamedTuple):
    """The global batch as every rank holds it, and what this rank needs to return its gradient."""

    unit_BD: Tensor
    """Unit embeddings, float32, 0 where the label is -1."""
    labels_B: Tensor
    """int64: -1 for ignored samples and padding."""
    valid_B: Tensor
    """bool: the label is not -1."""
    counted_B: Tensor
    """bool: the sample is valid and its weight is not 0."""
    weights_B: Tensor | None
    """Weights of the samples' losses, float64, 0 where the label is -1, NaN where they are
    negative; None where none were given."""
    norm_B: Tensor
    """Norms of the embeddings, float64, 1 where the sample is not counted."""
    last: Tensor
    """bool []: some rank said that it can make no further step."""
    own_unit_ND: Tensor
    """This rank's unit embeddings, float32."""
    own_norms_N1: Tensor
    """The norms of this rank's embeddings, float32."""
    dtype: torch.dtype
    """Type of the embeddings that were given."""


class Exchange:
    """The collectives of one batch: two all-gathers, of what is known before the embeddings and of
    these, and one reduce-scatter."""

    def __init__(self, ranks: Ranks, batch_size: int, wire_dtype: torch.dtype) -> None:
        self.ranks, self.batch_size, self.wire_dtype = ranks, batch_size, wire_dtype
        self.padded = -(-batch_size // ranks.world_size)

    @property
    def own_places(self) -> tuple[int, int]:
        """This rank's first place in the shared batch, and the one after its last sample."""
        first, after = batch_share(self.batch_size, self.ranks.rank, self.ranks.world_size)
        start = self.ranks.rank * self.padded
        return start, start + after - first

    def tell(self, labels_N: Tensor, *, last: bool, weights_N: Tensor | None = None) -> Told:
        """Share this rank's labels (int64, -1 is ignored), whether it can make no further step, and
        weights of its samples (any float dtype, used in float32), which all ranks give or none.
        Raises `ValueError` where their number is not its share."""
        self.check(labels=labels_N, weights=weights_N)
        columns = [labels_N.long()]
        if weights_N is not None:
            columns.append(_bits(weights_N.detach()))
        (labels_B, *weight_bits), last_somewhere = self._tell(columns, last)
        weights_B = None
        if weight_bits:
            weights_B = torch.where(labels_B != -1, _numbers(weight_bits[0]), 0.0)
            weights_B = torch.where(weights_B < 0, torch.nan, weights_B)
        return Told(labels_B, weights_B, last_somewhere)

    def gather(self, embeddings_ND: Tensor, told: Told) -> Shared:
        """Share this rank's embeddings (any float dtype). Raises `ValueError` where their number is
        not its share."""
        self.check(embeddings=embeddings_ND)
        labels_N, valid_B = self.own(told.labels_B), told.labels_B != -1
        local_ND = embeddings_ND.detach().float()
        norms_N1 = torch.linalg.vector_norm(local_ND, dim=1, keepdim=True)
        norms_N1 = norms_N1.clamp_(min=SHORTEST_EMBEDDING)
        # An ignored sample may hold anything, even NaN, and must not reach a sum.
        unit_ND = torch.where(labels_N[:, None] != -1, local_ND / norms_N1, 0)
        # The bits of the norms travel behind the unit embeddings, whatever the type of these.
        sent_NX = torch.cat([unit_ND.to(self.wire_dtype), norms_N1.view(self.wire_dtype)], 1)
        shared_BX = self.ranks.gather(sent_NX, self.padded, 0)
        unit_BX, norm_BX = shared_BX.tensor_split([unit_ND.shape[1]], 1)
        norm_B = norm_BX.contiguous().view(torch.float32)[:, 0].double()
        counted_B = valid_B if told.weights_B is None else valid_B & (told.weights_B != 0)
        return Shared(
            unit_BD=unit_BX.float().contiguous(),
            labels_B=told.labels_B,
            valid_B=valid_B,
            counted_B=counted_B,
            weights_B=told.weights_B,
            norm_B=torch.where(counted_B, norm_B, 1.0),
            last=told.last,
            own_unit_ND=unit_ND,
            own_norms_N1=norms_N1,
            dtype=embeddings_ND.dtype,
        )

    def own(self, values_B: Tensor) -> Tensor:
        """This rank's part [N, ...] of what the shared batch has at each place."""
        first, after = self.own_places
        return values_B[first:after]

    def gradient(
        self,
        shared: Shared,
        d_unit_BD: Tensor,
        d_norm_N: Tensor | None = None,
        active_B: Tensor | None = None,
    ) -> Tensor:
        """The gradient for this rank's embeddings TIMES the number of ranks, because the engine
        averages over them, [N, D] in the embeddings' dtype.

        `d_unit_BD` is this rank's part of d loss / d unit embeddings, and `d_norm_N` d loss / d
        norms of its own samples. The gradient is 0 where `active_B` (bool) is false; without it,
        where a sample is not counted.
        """
        unit_ND = shared.own_unit_ND
        d_unit_ND = self.ranks.scatter_sum(d_unit_BD.to(self.wire_dtype), len(unit_ND)).float()
        # Through the normalisation: what lies along the embedding is taken off.
        along_N1 = (d_unit_ND * unit_ND).sum(1, keepdim=True)
        d_local_ND = (d_unit_ND - along_N1 * unit_ND) / shared.own_norms_N1
        if d_norm_N is not None:
            d_local_ND += d_norm_N.float()[:, None] * unit_ND
        active_N = self.own(shared.counted_B if active_B is None else active_B)
        scaled_ND = d_local_ND * self.ranks.world_size
        return torch.where(active_N[:, None], scaled_ND, 0).to(shared.dtype)

    def check(self, **given: Tensor | None) -> None:
        """Raise `ValueError` where something that is given is not of this rank's samples."""
        first, after = self.own_places
        lengths = {name: len(tensor) for name, tensor in given.items() if tensor is not None}
        if any(length != after - first for length in lengths.values()):
            numbers = " and ".join(f"{length} {name}" for name, length in lengths.items())
            raise ValueError(
                f"rank {self.ranks.rank} of {self.ranks.world_size} got {numbers}; of a batch of "
                f"{self.batch_size} it holds {after - first}"
            )

    def _tell(self, columns: list[Tensor], last: bool) -> tuple[list[Tensor], Tensor]:
        """Exchange all ranks' columns, int64 [B] each, filled up with -1, and whether someone's
        `last` is true, bool [], in one message."""
        message_Nk = torch.stack(columns, 1)
        # Filled on the device: nothing waits for a copy.
        last_1k = message_Nk.new_full((1, len(columns)), int(last))
        told_Bk = self.ranks.gather(torch.cat([last_1k, message_Nk]), self.padded + 1, -1)
        told_WPk = told_Bk.view(self.ranks.world_size, -1, len(columns))
        columns_kB = told_WPk[:, 1:].flatten(0, 1).T.contiguous()
        return list(columns_kB), told_WPk[:, 0, 0].any()


class JointBatch:
    """One exchange for all losses over the same embeddings.

    They travel once, and the gradients of all losses come back together, in one collective when the
    sum of their surrogates is backpropagated; so every rank has to do that, with the same losses.
    """

    def __init__(self, exchange: Exchange, embeddings_ND: Tensor, told: Told) -> None:
        """Collective; see `Exchange.gather`."""
        self.exchange = exchange
        self.shared = exchange.gather(embeddings_ND, told)
        self._unit_BD, self._norms_N = _Exchanged.apply(embeddings_ND, exchange, self.shared)  # type: ignore[no-untyped-call]

    def surrogate(
        self, d_unit_BD: Tensor, d_norm_B: Tensor | None = None, active_B: Tensor | None = None
    ) -> Tensor:
        """A number whose backward gives the embeddings the gradient of a loss, as
        `Exchange.gradient` has it; `d_norm_B`, float64, is the same on all ranks."""
        if active_B is not None:
            d_unit_BD = torch.where(active_B[:, None], d_unit_BD, 0)
        number: Tensor = (self._unit_BD * d_unit_BD).sum()
        if d_norm_B is not None:
            if active_B is not None:
                d_norm_B = torch.where(active_B, d_norm_B, 0)
            number = number + (self._norms_N * self.exchange.own(d_norm_B).float()).sum()
        return number


class _Exchanged(torch.autograd.Function):
    """From this rank's embeddings to the unit embeddings of all, and this rank's norms, which an
    exchange has brought already; backward is the way back."""

    @staticmethod
    def forward(
        ctx: Any, embeddings_ND: Tensor, exchange: Exchange, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        ctx.exchange, ctx.shared = exchange, shared
        ctx.set_materialize_grads(False)
        return shared.unit_BD.detach(), shared.own_norms_N1[:, 0].detach()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_unit_BD: Tensor, d_norms_N: Tensor | None
    ) -> tuple[Tensor, None, None]:
        d_embeddings_ND: Tensor = ctx.exchange.gradient(ctx.shared, d_unit_BD, d_norms_N)
        return d_embeddings_ND, None, None


def _bits(values_N: Tensor) -> Tensor:
    """The bits of float32 numbers as int64, which a message of labels can hold."""
    return values_N.float().contiguous().view(torch.int32).long()


def _numbers(bits_B: Tensor) -> Tensor:
    """The numbers of `_bits`, float64."""
    return bits_B.int().view(torch.float32).double()
