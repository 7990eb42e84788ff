"""The class-sharded head: margin softmax over any number of classes, whose rows are spread over
ranks (Partial FC, arXiv 2203.15565).

It is no module and no part of autograd: one call makes the loss, the embeddings' gradient and the
update of the rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from manyfaces.configs import rng, schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.head_cost import chunk_classes
from manyfaces.configs.split import class_share
from manyfaces.models.head import pass1, pass2
from manyfaces.models.head.class_choice import ClassChoice
from manyfaces.models.head.collectives import Ranks
from manyfaces.models.head.exchange import Exchange, Shared
from manyfaces.models.head.float8 import bits
from manyfaces.models.head.loss import global_loss, target_cosines
from manyfaces.models.head.passes import (
    GlobalLoss,
    NegativeSums,
    Passes,
    PassInputs,
    Scoring,
    TargetCosines,
)
from manyfaces.models.head.row_optimizers import build
from manyfaces.models.head.rows import BeforeChange, Rows, StepMask
from manyfaces.models.head.sampling import Columns
from manyfaces.models.head.staging import Staging
from manyfaces.models.margins.inter_class_filter import InterClassFilter
from manyfaces.models.margins.margin import Margin, State

TORCH_PASSES = Passes(pass1.sum_negatives, pass2.update_rows)


class HeadStep(NamedTuple):
    """What a step gives; tensors on the head's device, so that nothing waits for it."""

    loss: Tensor
    """Mean over the valid labels of the global batch, with its weights, float64 [], the same on all
    ranks; 0 where there are none."""
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
    target_cosine_N: Tensor | None = None
    """float32: the cosine of each of this rank's samples with its own class, before any margin; NaN
    where the label is -1. None where details were not asked for."""
    nearest_negative_N: Tensor | None = None
    """float32: the cosine with the nearest other class that this step scored, over all ranks and
    within the sample's label space, before margin, transform and filter; NaN where the label is -1,
    -inf where no other class was scored. None where details were not asked for."""


class SharedStep(NamedTuple):
    """What a step on a batch that was exchanged before gives."""

    loss: GlobalLoss
    d_unit_BD: Tensor
    """float32: this rank's part of d loss / d unit embeddings."""
    details_N: tuple[Tensor | None, Tensor | None]
    """The last two tensors of `HeadStep`."""


class PartialFC:
    """The head of `num_classes` classes, of which this rank holds [lo, hi), its part by the ceil
    split of `torch.chunk`: of few classes, the last ranks may hold none."""

    num_classes: int
    lo: int
    hi: int
    rank: int
    world_size: int
    margin: Margin
    sub_centers: list[Rows]
    """The rows of each sub-centre: the k-th item holds the k-th row of every class. They are on the
    host where `config.placement` says so."""
    choice: ClassChoice
    """Which classes take part in a step."""
    staging: Staging | None
    """Copies of some rows on the device, where rows are on the host."""
    passes: Passes
    """What scores and updates rows: torch's operations or Triton's kernels."""

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
        """`weight_decay` is the backbone's, used where `config.rows` has none of its own. `seed` is
        that of the first rows and of the sampled classes; both are the same at any number of ranks.
        All ranks of `group` call `step` together; without a group this process is alone. `spaces`
        are the first classes of several label spaces: a sample's softmax is over the classes of its
        own. `kernels` lets Triton score and update the rows on CUDA, where the margin leaves other
        classes alone and logits are not stored.

        Raises `UserError` for no classes, for a margin of a person's own that cannot be made, and
        for a margin that does not go with sampling.
        """
        if num_classes < 1:
            raise UserError(f"the head has {num_classes} classes; it needs at least 1")
        self.config, self.num_classes = config, num_classes
        self.weight_decay = weight_decay
        if config.rows.weight_decay is not None:
            self.weight_decay = config.rows.weight_decay
        self.margin = _build_margin(config, num_classes, device)
        self.wire_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.wire_dtype]
        self.ranks = Ranks(group)
        self.rank, self.world_size = self.ranks.rank, self.ranks.world_size
        self.lo, self.hi = class_share(num_classes, self.rank, self.world_size)
        sub_centers = range(1, config.sub_centers)
        seeds = [seed, *(rng.key(seed, rng.Stream.HEAD_SUB_CENTERS, k) for k in sub_centers)]
        is_on_host = config.placement == "host"
        rows_device = torch.device("cpu") if is_on_host else device
        self.sub_centers = [
            build(config.rows, each, self.lo, self.hi, embedding_dim, rows_device) for each in seeds
        ]
        self.staging = Staging(self.sub_centers, device) if is_on_host else None
        self.choice = ClassChoice(
            num_classes,
            self.lo,
            self.hi,
            rate=config.sample_rate,
            seed=seed,
            chunk_classes=chunk_classes(config, is_gpu=device.type != "cpu"),
            spaces=spaces,
            device=rows_device,
        )
        self.passes = TORCH_PASSES
        if kernels and device.type == "cuda" and self._kernels_apply():
            from manyfaces.models.head.triton_passes import TRITON_PASSES

            self.passes = TRITON_PASSES

    def prefetch(self, position: int, batch_size: int, labels_B: Tensor | None = None) -> None:
        """Start what a step does not need embeddings for. Call it before the backbone runs on the
        batch of `batch_size` at sample `position`.

        Where rows are on the host, the drawn ones are brought to the device. `labels_B` are the
        batch's `Told.labels_B`: with them a GPU's host need not wait for the backbone's work to
        know which classes are scored (`ClassChoice.look_ahead`).
        """
        if self.staging is not None:
            more = self.choice.most_undrawn(batch_size)
            self.staging.prefetch(self.choice.drawn(position), more)
        if labels_B is not None:
            self.choice.look_ahead(labels_B, position)

    def step(
        self,
        embeddings_ND: Tensor,
        labels_N: Tensor,
        *,
        lr: float,
        position: int,
        batch_size: int,
        last: bool = False,
        weights_N: Tensor | None = None,
        weight: float = 1.0,
        details: bool = False,
    ) -> HeadStep:
        """Compute the loss and its gradient, and update the rows in place, which is left out where
        `finite` or `one_owner` is false or no sample has a valid label and a weight above 0.

        `embeddings_ND` (any float dtype) and `labels_N` (int64, -1 is ignored) are this rank's
        samples [r B // W, (r + 1) B // W) of the global batch of B = `batch_size`, which starts at
        sample `position`. `lr` is the backbone's. `last` on any rank is told to all in
        `HeadStep.last` and changes nothing in this step.

        `weights_N` (any float dtype, >= 0, used in float32) are weights of the samples: the loss is
        the sum of weight x sample loss over the valid labels, over the NUMBER of valid labels. All
        ranks give them or none does. A sample of weight 0 sends no gradient, not even NaN, and does
        not count in a margin's running numbers; a negative weight makes the loss NaN. `weight` (>=
        0) is a factor of the whole loss. `details` asks for the last two tensors of `HeadStep`; all
        ranks ask for them or none does.

        There are four collectives; one more where the margin needs target cosines, and one more for
        details. Where classes are sampled, a GPU's host may wait for the labels, and so for all
        work in flight; `step_shared` after `prefetch` does not. Raises `ValueError` where the
        number of samples is another or `weight` is negative.
        """
        exchange = Exchange(self.ranks, batch_size, self.wire_dtype)
        exchange.check(embeddings=embeddings_ND, labels=labels_N, weights=weights_N)
        told = exchange.tell(labels_N, last=last, weights_N=weights_N)
        batch = exchange.gather(embeddings_ND, told)
        loss, d_unit_BD, details_N = self.step_shared(
            exchange, batch, lr=lr, position=position, weight=weight, details=details
        )
        d_norm_N = None if loss.d_norm_B is None else exchange.own(loss.d_norm_B)
        d_embeddings_ND = exchange.gradient(batch, d_unit_BD, d_norm_N, loss.active_B)
        return HeadStep(
            loss.loss, d_embeddings_ND, loss.finite, loss.one_owner, batch.last, *details_N
        )

    def step_shared(
        self,
        exchange: Exchange,
        batch: Shared,
        *,
        lr: float,
        position: int,
        weight: float = 1.0,
        details: bool = False,
        peek: bool = False,
    ) -> SharedStep:
        """Step the head as `step` does, on a batch that was exchanged before. The gradient of the
        unit embeddings is this rank's part, which is not yet on its way back. A `peek` leaves rows,
        their state and the margin's running numbers as they are."""
        if not weight >= 0:
            raise ValueError(f"the weight of the head's loss is {weight}; it must be 0 or more")
        sub_centers, columns, row_B = self._columns(batch.labels_B, position)
        state_before = self.margin.state
        targets, scoring = self._scoring(target_cosines(sub_centers, batch.unit_BD, row_B), batch)

        inputs = PassInputs(sub_centers, batch.unit_BD, columns, scoring)
        store = self.config.logits == "store16"
        negatives = self.passes.sum_negatives(inputs, store=store, nearest=details)
        loss = global_loss(
            self.margin, targets, negatives, batch, scoring.scale, weight, self.ranks
        )
        lr *= self.config.rows.lr_scale
        applied = torch.zeros_like(loss.finite) if peek else loss.active_B.any()
        mask = StepMask(applied, lr, self.weight_decay, position)
        d_unit_BD = self.passes.update_rows(
            inputs, loss, negatives.chunks, targets.sub_center_B, mask
        )
        self._finish_step(mask, loss, state_before)
        details_N = _details(loss, negatives, batch, exchange) if details else (None, None)
        return SharedStep(loss, d_unit_BD, details_N)

    def _columns(self, labels_B: Tensor, position: int) -> tuple[Sequence[Rows], Columns, Tensor]:
        """The rows of this step, up to date, its columns, and each sample's own row among those
        rows, or a number outside them."""
        columns = self.choice.columns(labels_B, position)
        if self.staging is None:
            sub_centers, row_B = self.sub_centers, labels_B - self.lo
        else:
            sub_centers, columns = self.staging.stage(columns)
            row_B = columns.targets_B
        for rows in sub_centers:
            for chunk in columns.chunks:
                rows.catch_up_(chunk.ids)
        return sub_centers, columns, row_B

    def _scoring(self, targets: TargetCosines, batch: Shared) -> tuple[TargetCosines, Scoring]:
        """Let the margin see the batch, which may move its state, and say how classes are scored.
        Where it needs target cosines, those returned are of all ranks."""
        margin, cosine_B = self.margin, None
        if margin.needs_target_cosines:
            cosine_B, num_owners_B = self.ranks.sum_(
                torch.stack([targets.cosine_B, targets.num_owners_B])
            )
            targets = targets._replace(cosine_B=cosine_B, num_owners_B=num_owners_B)
            if batch.weights_B is not None:  # a sample of weight 0 may be NaN
                cosine_B = torch.where(batch.counted_B, cosine_B, 0)
        margin.state = margin.observe(cosine_B, batch.norm_B, batch.counted_B)
        transform = margin.negative_transform(cosine_B)
        if self.config.filter_above is not None:
            transform = InterClassFilter(self.config.filter_above, transform)
        is_binary = margin.binary is not None
        return targets, Scoring(self.config.scale, transform, is_binary, margin.largest_logit)

    def _finish_step(self, mask: StepMask, loss: GlobalLoss, state_before: State) -> None:
        """Do what comes after the update of the rows. The margin's state goes back to
        `state_before` if the step is called off."""
        if self.staging is not None:
            self.staging.put_back()
        for rows in self.sub_centers:
            rows.finish_step_(mask)
        learnt = self.margin.learn(loss.d_bias, mask.lr, self.config.rows.momentum)
        self.margin.state = {
            name: torch.where(mask.applied, number, state_before[name])
            for name, number in learnt.items()
        }

    def _kernels_apply(self) -> bool:
        """Whether Triton's kernels can score this head's classes."""
        return (
            self.config.logits == "recompute"
            and self.config.rows.dtype != "float8"
            and self.config.sub_centers == 1
            and self.config.filter_above is None
            and self.choice.space_C is None
            and self.margin.is_plain_softmax
        )

    def forget(self, classes: Tensor) -> None:
        """Make these class ids (int64, any order, of any rank) no classes any more: their rows and
        state become zero, no softmax counts them.

        Call it after `tensors()` were filled from a checkpoint; samples of these classes must come
        with label -1.
        """
        here = classes[(classes >= self.lo) & (classes < self.hi)] - self.lo
        if len(here):
            self.choice.forget(here)
            assert self.choice.forgotten_C is not None
            tensors = self.tensors()
            for rows in self.sub_centers:
                rows.tell_change(slice(0, self.hi - self.lo))
            for tensor in tensors.values():
                bits(tensor)[self.choice.forgotten_C[:-1]] = 0

    def tensors(self) -> dict[str, Tensor]:
        """This rank's state, [hi - lo, ...]: the tensors themselves, not copies. `rows` [hi - lo,
        D] and what their optimiser keeps; those of sub-centre k > 0 as `rows.k` and so on. Rows on
        the host are up to date until the next step or `prefetch`."""
        if self.staging is not None:
            self.staging.wait()
        return {
            name + (f".{k}" if k else ""): tensor
            for k, rows in enumerate(self.sub_centers)
            for name, tensor in rows.tensors().items()
        }

    def watch(self, before_change: BeforeChange | None) -> None:
        """Have every change of what `tensors()` returns told before it from now on, by the local
        ids of the rows that change; None ends it."""
        for rows in self.sub_centers:
            rows.before_change = before_change

    def refresh_norms(self) -> None:
        """Compute anew what the state keeps of the rows' norms. Call it after `tensors()` were
        filled from those of another dtype."""
        for rows in self.sub_centers:
            rows.refresh_norms_()

    def numbers(self) -> dict[str, float]:
        """The margin's running numbers, for a checkpoint; the same on all ranks."""
        return {name: number.item() for name, number in self.margin.state.items()}

    def load_numbers(self, numbers: dict[str, float]) -> None:
        """Take over the running numbers of a checkpoint. Raises `UserError` where they are another
        margin's."""
        if numbers.keys() != self.margin.state.keys():
            found = ", ".join(numbers) or "nothing"
            needed = ", ".join(self.margin.state) or "nothing"
            raise UserError(
                f"head.margin: the checkpoint's keeps {found}, this one {needed}; resume with the "
                "margin it was made with"
            )
        for name, number in numbers.items():
            self.margin.state[name].fill_(number)


def _build_margin(config: schema.Head, num_classes: int, device: torch.device) -> Margin:
    """The margin of a head, ready to be used, with its state on the device."""
    margin: Margin = config.margin.build()
    margin.begin(config.scale, num_classes)
    # The configuration refuses this for our own margins; only the class itself tells of a person's.
    if margin.binary is not None and config.sample_rate < 1:
        raise UserError(
            f"head.sample_rate {config.sample_rate:g} does not go with {type(margin).__name__}, "
            "whose losses of own and other classes are balanced over all of them; set "
            "head.sample_rate=1"
        )
    margin.state = {name: number.to(device) for name, number in margin.state.items()}
    return margin


def _details(
    loss: GlobalLoss, negatives: NegativeSums, batch: Shared, exchange: Exchange
) -> tuple[Tensor, Tensor]:
    """This rank's `HeadStep.target_cosine_N` and `HeadStep.nearest_negative_N`, by one
    collective."""
    assert negatives.nearest_B is not None
    nearest_B = exchange.ranks.max_(negatives.nearest_B)
    cosines_2B = torch.stack([loss.target_cosine_B.float(), nearest_B])
    target_B, nearest_B = torch.where(batch.valid_B, cosines_2B, torch.nan)
    return exchange.own(target_B), exchange.own(nearest_B)
