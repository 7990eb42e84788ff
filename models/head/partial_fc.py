"""The class-sharded head: margin softmax over any number of classes, their rows spread over ranks
(Partial FC, arXiv 2203.15565).

It is no module and no part of autograd: one call makes the loss, the embeddings' gradient and the
update of the rows.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from manyfaces.configs import rng, schema
from manyfaces.configs.head_cost import chunk_classes
from manyfaces.models.head import passes as softmax
from manyfaces.models.head import sampling
from manyfaces.models.head.collectives import Ranks, share
from manyfaces.models.head.passes import Kept, Negatives, Outcome, Scoring, Targets
from manyfaces.models.head.row_optimizers import build
from manyfaces.models.head.rows import Gate, Rows, take
from manyfaces.models.head.sampling import Columns
from manyfaces.models.head.staging import Staging
from manyfaces.models.head.triplet import triplet
from manyfaces.models.margins import losses
from manyfaces.models.margins import margin as margins

_PLANES = 0x504C414E  # keeps the seeds of further sub-centres apart from other draws


class HeadStep(NamedTuple):
    """What a step gives; tensors on the head's device, so that nothing waits for it."""

    loss: Tensor
    """Mean over the valid labels of the global batch, float64 [], the same on all ranks; 0 where
    there are none."""
    d_embeddings_ND: Tensor
    """Gradient of that loss TIMES the number of ranks, because the engine averages over them, in
    the embeddings' dtype; 0 if called off."""
    finite: Tensor
    """bool []: the loss is a number. The same on all ranks."""
    one_owner: Tensor
    """bool []: each valid label is a class of exactly one rank; false for labels outside [0, C)
    other than -1. The same on all ranks."""
    last: Tensor
    """bool []: some rank said that it can make no further step. The same on all ranks."""


class Walks(Protocol):
    """The modules `softmax` and `kernels`."""

    def sum_negatives(
        self,
        planes: Sequence[Rows],
        unit_BD: Tensor,
        columns: Columns,
        scoring: Scoring,
        *,
        store: bool,
    ) -> Negatives: ...

    def descend(
        self,
        planes: Sequence[Rows],
        unit_BD: Tensor,
        columns: Columns,
        scoring: Scoring,
        outcome: Outcome,
        kept: list[Kept],
        nearest_B: Tensor,
        gate: Gate,
    ) -> Tensor: ...


class PartialFC:
    """Classes [lo, hi) of `num_classes`, this rank's part by the ceil split of `torch.chunk`: of
    few classes, the last ranks may hold none.

    `weight_decay` is the backbone's, used where `config.rows` has none of its own. `seed` is of the
    initial rows and the sampled classes; both are the same at any number of ranks. All ranks of
    `group` call `step` together; without a group this process is alone. `spaces` are the first
    classes of several label spaces: a sample's softmax is over the classes of its own. On CUDA,
    Triton's `kernels` walk over the rows of margins that leave other classes alone, unless that is
    false or logits are stored. Where `config.placement` is host, `planes` are there whatever the
    device, and a step works on copies of some rows (`staging.py`). Raises `schema.UserError` for no
    classes.
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
        spaces: Sequence[int] = (0,),
        kernels: bool = True,
    ) -> None:
        if num_classes < 1:
            raise schema.UserError(f"the head has {num_classes} classes; it needs at least 1")
        self.config, self.num_classes, self.seed = config, num_classes, seed
        self.weight_decay = (
            weight_decay if config.rows.weight_decay is None else config.rows.weight_decay
        )
        self.margin = losses.build(config.margin, config.scale, num_classes)
        self.margin.state = {name: number.to(device) for name, number in self.margin.state.items()}
        if (
            self.margin.binary is not None
            and config.margin.kind == "custom"
            and config.sample_rate < 1
        ):
            why = "whose losses of own and other classes are balanced over all of them"
            raise schema.UserError(
                f"head.sample_rate {config.sample_rate:g} does not go with {config.margin.name}, "
                f"{why}; set head.sample_rate=1"
            )
        self.wire_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.wire_dtype]
        self.ranks = Ranks(group)
        self.rank, self.world_size = self.ranks.rank, self.ranks.world_size
        part = -(-num_classes // self.world_size)
        self.lo, self.hi = (min(r * part, num_classes) for r in (self.rank, self.rank + 1))
        seeds = [seed, *(rng.key(seed, _PLANES, k) for k in range(1, config.sub_centers))]
        # Without a loss by classes rows are nothing but their number.
        dim = 1 if isinstance(self.margin, margins.Nothing) else embedding_dim
        home = torch.device("cpu") if config.placement == "host" else device
        self.planes: list[Rows] = [
            build(config.rows, own, self.lo, self.hi, dim, home) for own in seeds
        ]
        self.staging = Staging(self.planes, device) if config.placement == "host" else None
        self.chunk_classes = chunk_classes(config, is_gpu=device.type != "cpu")
        self.spaces = torch.tensor(list(spaces), device=home)
        self.space_C: Tensor | None = None
        if len(spaces) > 1:
            self.space_C = self._space(torch.arange(self.lo, self.hi + 1, device=home))
        self.walks: Walks = softmax
        plain = (
            config.sub_centers == 1
            and config.filter_above is None
            and len(spaces) == 1
            and not margins.bends(self.margin)
        )
        if kernels and device.type == "cuda" and config.logits == "recompute" and plain:
            from manyfaces.models.head import kernels as in_triton

            self.walks = in_triton
        self.gone_C: Tensor | None = None

    def prefetch(self, position: int, batch_size: int) -> None:
        """Call it before the backbone runs on the batch at sample `position`, for rows on the host:
        those drawn start to travel."""
        if self.staging is not None:
            drawn = self._choose(torch.empty(0, dtype=torch.int64), position).chunks
            ids = [chunk.ids for chunk in drawn if isinstance(chunk.ids, Tensor)]
            self.staging.prefetch(
                torch.cat([*ids, torch.empty(0, dtype=torch.int64)]),
                min(batch_size, self.hi - self.lo),
            )

    def step(
        self,
        embeddings_ND: Tensor,
        labels_N: Tensor,
        *,
        lr: float,
        position: int,
        batch_size: int,
        last: bool = False,
    ) -> HeadStep:
        """Loss, gradient, and the rows' update in place, which is left out where `finite` or
        `one_owner` is false or no label is valid.

        `embeddings_ND` (any float dtype) and `labels_N` (int64, -1 is ignored) are this rank's
        samples [r B // W, (r + 1) B // W) of the global batch of B = `batch_size`, which starts at
        sample `position`. `lr` is the backbone's. Four collectives, five where the margin has to
        know the target cosines first. `last` on any rank is told to all in `HeadStep.last` and
        travels with the labels: it changes nothing in this step. Raises `ValueError` where their
        number is another.
        """
        first, after = share(batch_size, self.rank, self.world_size)
        if len(embeddings_ND) != after - first or len(labels_N) != after - first:
            given = f"{len(embeddings_ND)} embeddings and {len(labels_N)} labels"
            raise ValueError(
                f"rank {self.rank} of {self.world_size} got {given}; of a batch of {batch_size} it "
                f"holds {after - first}"
            )
        padded = -(-batch_size // self.world_size)
        local_ND = embeddings_ND.detach().float()
        norms_N1 = torch.linalg.vector_norm(local_ND, dim=1, keepdim=True).clamp_(min=1e-12)
        # An ignored sample may hold anything, even NaN, and must not reach a sum.
        local_ND = torch.where(labels_N[:, None] != -1, local_ND / norms_N1, 0)
        unit_BD = self.ranks.gather(local_ND.to(self.wire_dtype), padded, 0).float()
        labels_B, norm_B, last_somewhere = self._tell(labels_N.long(), norms_N1[:, 0], padded, last)
        valid_B = labels_B != -1

        planes, columns, own_B = self._columns(labels_B, position)
        before = self.margin.state
        targets, scoring = self._score(softmax.targets(planes, unit_BD, own_B), norm_B, valid_B)
        negatives = self.walks.sum_negatives(
            planes, unit_BD, columns, scoring, store=self.config.logits == "store16"
        )
        beside, d_beside_BD = norm_B.new_zeros(()), None
        if self.config.triplet is not None:
            place = self.rank * padded
            beside, d_beside_BD = triplet(
                unit_BD, labels_B, place, place + len(local_ND), self.config.triplet
            )
        outcome = softmax.join(
            self.margin, negatives, targets, norm_B, valid_B, self.config.scale, self.ranks, beside
        )

        gate = Gate(
            outcome.live_B.any(), lr * self.config.rows.lr_scale, self.weight_decay, position
        )
        d_unit_BD = self.walks.descend(
            planes, unit_BD, columns, scoring, outcome, negatives.kept, targets.nearest_B, gate
        )
        self._finish(gate, outcome, before)
        if d_beside_BD is not None:
            d_unit_BD += d_beside_BD
        d_unit_ND = self.ranks.scatter_sum(d_unit_BD.to(self.wire_dtype), len(local_ND)).float()
        # Through the normalisation: what lies along the embedding is taken off.
        d_local_ND = (d_unit_ND - (d_unit_ND * local_ND).sum(1, keepdim=True) * local_ND) / norms_N1
        if outcome.d_norm_B is not None:
            d_norm_N = outcome.d_norm_B[self.rank * padded :][: len(local_ND)]
            d_local_ND += d_norm_N.float()[:, None] * local_ND
        live = (labels_N[:, None] != -1) & outcome.finite & outcome.one_owner
        d_embeddings_ND = torch.where(live, d_local_ND * self.world_size, 0).to(embeddings_ND.dtype)
        return HeadStep(
            outcome.loss, d_embeddings_ND, outcome.finite, outcome.one_owner, last_somewhere
        )

    def _score(self, targets: Targets, norm_B: Tensor, valid_B: Tensor) -> tuple[Targets, Scoring]:
        """Let the margin see the batch, which may move its state, and say how classes are scored.
        Where it has to see the target cosines first, those returned are of all ranks."""
        margin = self.margin
        if margin.looks_first:
            cosine_B, owners_B = self.ranks.sum_(torch.stack([targets.cosine_B, targets.owners_B]))
            targets = targets._replace(cosine_B=cosine_B, owners_B=owners_B)
        seen_B = targets.cosine_B if margin.looks_first else None
        margin.state = margin.observe(seen_B, norm_B, valid_B)
        bend = margin.bend(seen_B)
        if self.config.filter_above is not None:
            bend = margins.Filter(self.config.filter_above, bend)
        return targets, Scoring(
            self.config.scale, bend, margin.binary is not None, margin.largest_logit
        )

    def _finish(self, gate: Gate, outcome: Outcome, before: margins.State) -> None:
        """After the rows' update: what they keep besides, and the margin's state, which goes back
        to `before` if the step is called off."""
        if self.staging is not None:
            self.staging.put_back()
        for plane in self.planes:
            plane.finish_(gate)
        learnt = self.margin.learn(outcome.d_bias, gate.lr, self.config.rows.momentum)
        self.margin.state = {
            name: torch.where(gate.open, number, before[name]) for name, number in learnt.items()
        }

    def _tell(
        self, labels_N: Tensor, norms_N: Tensor, padded: int, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """In one message: all labels, int64 [B], and norms, float64 [B], 1 where the label is -1;
        whether someone's `last` is true."""
        bits_N = norms_N.view(torch.int32).long()
        told_N2 = torch.stack([labels_N, bits_N], 1)
        told_N2 = torch.cat(
            [told_N2.new_full((1, 2), int(last)), told_N2]
        )  # filled on the device: nothing waits for a copy
        told_WN2 = self.ranks.gather(told_N2, padded + 1, -1).view(self.world_size, -1, 2)
        labels_B, bits_B = told_WN2[:, 1:].flatten(0, 1).T.contiguous()
        norm_B = bits_B.int().view(torch.float32).double()
        return labels_B, torch.where(labels_B != -1, norm_B, 1.0), told_WN2[:, 0, 0].any()

    def _choose(self, labels_B: Tensor, position: int) -> Columns:
        return sampling.choose(
            self.num_classes,
            self.lo,
            self.hi,
            self.config.sample_rate,
            self.seed,
            position,
            labels_B,
            self.chunk_classes,
        )

    def _columns(self, labels_B: Tensor, position: int) -> tuple[Sequence[Rows], Columns, Tensor]:
        """Planes that hold the rows of this step, up to date, its columns, and each sample's own
        row in those planes, or none of them."""
        if self.staging is not None:
            labels_B = self.staging.seen(labels_B)
        columns = self._choose(labels_B, position)
        if isinstance(self.margin, margins.Nothing):
            columns = columns._replace(chunks=[])
        if (gone_C := self.gone_C) is not None:
            columns = columns._replace(
                chunks=[
                    replace(chunk, absent_n=take(gone_C, chunk.ids)) for chunk in columns.chunks
                ]
            )
        if (space_C := self.space_C) is not None:
            chunks = [replace(chunk, space_n=take(space_C, chunk.ids)) for chunk in columns.chunks]
            every_S1 = torch.arange(len(self.spaces), dtype=torch.int16, device=space_C.device)[
                :, None
            ]
            columns = columns._replace(
                chunks=chunks, space_B=self._space(labels_B).long().clamp(min=0), spaces_S1=every_S1
            )
        planes, own_B = self.planes, labels_B - self.lo
        if self.staging is not None:
            planes, columns = self.staging.stage(columns)
            own_B = columns.targets_B
        for plane in planes:
            for chunk in columns.chunks:
                plane.catch_up_(chunk.ids)
        return planes, columns, own_B

    def _space(self, classes: Tensor) -> Tensor:
        return (torch.searchsorted(self.spaces, classes, right=True) - 1).to(torch.int16)

    def forget(self, classes: Tensor) -> None:
        """These class ids (int64, any order, of any rank) are no classes any more: rows and state
        become zero, no softmax counts them.

        Call it after `tensors()` were filled from a checkpoint; samples of these classes must come
        with label -1.
        """
        here = classes[(classes >= self.lo) & (classes < self.hi)] - self.lo
        if len(here):
            gone_C = (
                torch.zeros(self.hi - self.lo + 1, dtype=torch.bool)
                if self.gone_C is None
                else self.gone_C.cpu()
            )
            gone_C[here] = True
            gone_C[-1] = True  # stands for no class
            self.gone_C = gone_C.to(self.planes[0].rows_CD.device)
            for tensor in self.tensors().values():
                tensor[self.gone_C[:-1]] = 0

    def tensors(self) -> dict[str, Tensor]:
        """This rank's state, [hi - lo, ...]: the tensors themselves, not copies. `rows` [hi - lo,
        D] and what their optimiser keeps; those of sub-centre k > 0 as `rows.k` and so on. Rows on
        the host are up to date until the next step or `prefetch`."""
        if self.staging is not None:
            self.staging.wait()
        return {
            name + (f".{k}" if k else ""): tensor
            for k, plane in enumerate(self.planes)
            for name, tensor in plane.tensors().items()
        }

    def rounded(self) -> None:
        """Call it after `tensors()` were filled from those of another dtype."""
        for plane in self.planes:
            plane.rounded_()

    def numbers(self) -> dict[str, float]:
        """The margin's running numbers, for a checkpoint; the same on all ranks."""
        return {name: number.item() for name, number in self.margin.state.items()}

    def load_numbers(self, numbers: dict[str, float]) -> None:
        """Those of a checkpoint. Raises `schema.UserError` where they are another margin's."""
        if numbers.keys() != self.margin.state.keys():
            found, needed = (
                ", ".join(names) or "nothing" for names in (numbers, self.margin.state)
            )
            raise schema.UserError(
                f"head.margin: the checkpoint's keeps {found}, this one {needed}; resume with the "
                "margin it was made with"
            )
        for name, number in numbers.items():
            self.margin.state[name].fill_(number)
