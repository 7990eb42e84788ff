"""The class-sharded head: margin softmax over any number of classes, their rows spread over ranks (Partial FC, arXiv 2203.15565).

It is no module and no part of autograd: one call makes the loss, the embeddings' gradient and the update of the rows.
"""

from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from manyfaces.configs import schema
from manyfaces.models import margins, sampling, softmax
from manyfaces.models.collectives import Ranks, share
from manyfaces.models.rows import Gate, Rows, build, take
from manyfaces.models.sampling import Columns
from manyfaces.models.softmax import Kept, Negatives, Outcome


class HeadStep(NamedTuple):
    """What a step gives; tensors on the head's device, so that nothing waits for it."""

    loss: Tensor
    """Mean over the valid labels of the global batch, float64 [], the same on all ranks; 0 where there are none."""
    d_embeddings_ND: Tensor
    """Gradient of that loss TIMES the number of ranks, because the engine averages over them, in the embeddings' dtype; 0 if called off."""
    finite: Tensor
    """bool []: the loss is a number. The same on all ranks."""
    one_owner: Tensor
    """bool []: each valid label is a class of exactly one rank; false for labels outside [0, C) other than -1. The same on all ranks."""
    last: Tensor
    """bool []: some rank said that it can make no further step. The same on all ranks."""


class Walks(Protocol):
    """The modules `softmax` and `kernels`."""

    def sum_negatives(self, rows: Rows, unit_BD: Tensor, columns: Columns, scale: float, *, store: bool) -> Negatives: ...

    def descend(
        self, rows: Rows, unit_BD: Tensor, columns: Columns, scale: float, outcome: Outcome, kept: list[Kept], gate: Gate
    ) -> Tensor: ...


class PartialFC:
    """Classes [lo, hi) of `num_classes`, this rank's part by the ceil split of `torch.chunk`: of few classes, the last ranks may hold none.

    `weight_decay` is the backbone's, used where `config.rows` has none of its own.
    `seed` is of the initial rows and the sampled classes; both are the same at any number of ranks. All ranks of `group` call `step`
    together; without a group this process is alone. On CUDA, Triton's `kernels` walk over the rows unless that is false or logits are
    stored. Raises `schema.UserError` for no classes.
    """

    num_classes: int
    lo: int
    hi: int
    rank: int
    world_size: int

    def __init__(
        self,
        config: schema.Head,
        num_classes: int,
        embedding_dim: int,
        *,
        seed: int,
        weight_decay: float,
        device: torch.device,
        group: ProcessGroup | None = None,
        kernels: bool = True,
    ) -> None:
        if num_classes < 1:
            raise schema.UserError(f"the head has {num_classes} classes; it needs at least 1")
        self.config, self.num_classes, self.seed = config, num_classes, seed
        self.weight_decay = weight_decay if config.rows.weight_decay is None else config.rows.weight_decay
        self.margin = margins.build(config.margin)
        self.wire_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.wire_dtype]
        self.ranks = Ranks(group)
        self.rank, self.world_size = self.ranks.rank, self.ranks.world_size
        part = -(-num_classes // self.world_size)
        self.lo, self.hi = (min(r * part, num_classes) for r in (self.rank, self.rank + 1))
        self.rows: Rows = build(config.rows, seed, self.lo, self.hi, embedding_dim, device)
        self.chunk_classes = {"cpu": 1024}.get(device.type, 16384) if config.chunk_classes == "auto" else config.chunk_classes
        self.walks: Walks = softmax
        if kernels and device.type == "cuda" and config.logits == "recompute":
            from manyfaces.models import kernels as in_triton

            self.walks = in_triton
        self.gone_C: Tensor | None = None

    def step(self, embeddings_ND: Tensor, labels_N: Tensor, *, lr: float, position: int, batch_size: int, last: bool = False) -> HeadStep:
        """Loss, gradient, and the rows' update in place, which is left out where `finite` or `one_owner` is false or no label is valid.

        `embeddings_ND` (any float dtype) and `labels_N` (int64, -1 is ignored) are this rank's samples [r B // W, (r + 1) B // W) of the
        global batch of B = `batch_size`, which starts at sample `position`. `lr` is the backbone's. Four collectives.
        `last` on any rank is told to all in `HeadStep.last` and travels with the labels: it changes nothing in this step.
        Raises `ValueError` where their number is another.
        """
        first, after = share(batch_size, self.rank, self.world_size)
        if len(embeddings_ND) != after - first or len(labels_N) != after - first:
            given = f"{len(embeddings_ND)} embeddings and {len(labels_N)} labels"
            raise ValueError(f"rank {self.rank} of {self.world_size} got {given}; of a batch of {batch_size} it holds {after - first}")
        padded = -(-batch_size // self.world_size)
        local_ND = embeddings_ND.detach().float()
        norms_N1 = torch.linalg.vector_norm(local_ND, dim=1, keepdim=True).clamp_(min=1e-12)
        # An ignored sample may hold anything, even NaN, and must not reach a sum.
        local_ND = torch.where(labels_N[:, None] != -1, local_ND / norms_N1, 0)
        unit_BD = self.ranks.gather(local_ND.to(self.wire_dtype), padded, 0).float()
        told_N = torch.cat([labels_N.new_full((1,), int(last)), labels_N]).long()  # filled on the device: nothing waits for a copy
        told_WN = self.ranks.gather(told_N, padded + 1, -1).view(self.world_size, -1)
        labels_B = told_WN[:, 1:].flatten()

        columns = sampling.choose(
            self.num_classes, self.lo, self.hi, self.config.sample_rate, self.seed, position, labels_B, self.chunk_classes
        )
        if (gone_C := self.gone_C) is not None:
            columns = columns._replace(chunks=[replace(chunk, absent_n=take(gone_C, chunk.ids)) for chunk in columns.chunks])
        scale = self.config.scale
        negatives = self.walks.sum_negatives(self.rows, unit_BD, columns, scale, store=self.config.logits == "store16")
        cosine_B, owners_B = softmax.target_cosines(self.rows, unit_BD, labels_B - self.lo)
        outcome = softmax.join(negatives, cosine_B, owners_B, labels_B != -1, self.margin, scale, self.ranks)

        gate = Gate(outcome.live_B.any(), lr * self.config.rows.lr_scale, self.weight_decay, position)
        d_unit_BD = self.walks.descend(self.rows, unit_BD, columns, scale, outcome, negatives.kept, gate)
        d_unit_ND = self.ranks.scatter_sum(d_unit_BD.to(self.wire_dtype), len(local_ND)).float()
        # Through the normalisation: what lies along the embedding is taken off.
        d_local_ND = (d_unit_ND - (d_unit_ND * local_ND).sum(1, keepdim=True) * local_ND) * (self.world_size / norms_N1)
        live = (labels_N[:, None] != -1) & outcome.finite & outcome.one_owner
        return HeadStep(
            outcome.loss, torch.where(live, d_local_ND, 0).to(embeddings_ND.dtype), outcome.finite, outcome.one_owner, told_WN[:, 0].any()
        )

    def forget(self, classes: Tensor) -> None:
        """These class ids (int64, any order, of any rank) are no classes any more: rows and state become zero, no softmax counts them.

        Call it after `load`; samples of these classes must come with label -1.
        """
        here = classes[(classes >= self.lo) & (classes < self.hi)] - self.lo
        if len(here):
            gone_C = torch.zeros(self.hi - self.lo + 1, dtype=torch.bool) if self.gone_C is None else self.gone_C.cpu()
            gone_C[here] = True
            gone_C[-1] = True  # stands for no class
            self.gone_C = gone_C.to(self.rows.rows_CD.device)
            for tensor in self.tensors().values():
                tensor[self.gone_C[:-1]] = 0

    def tensors(self) -> dict[str, Tensor]:
        """This rank's state, [hi - lo, ...]: the tensors themselves, not copies. `rows` [hi - lo, D] and what their optimiser keeps."""
        return self.rows.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy a state in place. Raises `schema.UserError` where names or shapes are others."""
        self.rows.load(tensors)
