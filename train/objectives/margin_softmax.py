"""Margin softmax: identities are classes, whose centres the class-sharded head holds and steps."""

from collections.abc import Mapping

from torch import Tensor

from manyfaces.configs.schema import Config
from manyfaces.data.feed.loader import Batch
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.objectives.objective import (
    Forward,
    Loss,
    Moment,
    Objective,
    Setting,
    ShardedRows,
)

PART = "head"
"""Name of its state in a checkpoint."""


class MarginSoftmax(Objective):
    """The class-sharded head as an objective (Partial FC, arXiv 2203.15565)."""

    tells_last = True

    def __init__(self, weight: float, branch: str, setting: Setting) -> None:
        config = setting.config
        self.weight, self.branch = weight, branch
        self.head = PartialFC(
            config.head,
            setting.num_identities,
            config.model.embedding_dim,
            seed=config.run.seed,
            weight_decay=config.train.optimizer.weight_decay,
            device=setting.device,
            group=setting.group,
            spaces=setting.first_classes if config.head.label_spaces == "each" else (0,),
            kernels=config.engine.head_kernels == "auto",
        )

    def prefetch(self, forward: Forward, batch: Batch, moment: Moment) -> None:
        head, labels_B = self.head, None
        # Where all classes are scored nothing is chosen by the labels, and to tell them here would
        # let the network wait for the slowest rank.
        if head.config.sample_rate < 1:
            labels_B = forward.told(batch.labels_N, moment, head.ranks).labels_B
        head.prefetch(moment.position, moment.batch_size, labels_B)

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        return self.step_head(forward, batch, moment)[0]

    def step_head(
        self, forward: Forward, batch: Batch, moment: Moment, *, details: bool = False
    ) -> tuple[Loss, tuple[Tensor | None, Tensor | None]]:
        """The loss, for which the head takes its step, and this rank's `SharedStep.details_N`,
        which `details` asks for."""
        head = self.head
        joint = forward.joint(self.branch, batch.labels_N, moment, head.ranks, head.wire_dtype)
        loss, d_unit_BD, details_N = head.step_shared(
            joint.exchange,
            joint.shared,
            lr=moment.lr,
            position=moment.position,
            weight=self.weight,
            details=details,
        )
        told = Loss(
            surrogate=joint.surrogate(d_unit_BD, loss.d_norm_B, loss.active_B),
            value=loss.loss,
            finite=loss.finite,
            last=joint.shared.last,
            checks={"a label of this batch has no class row, or several": loss.one_owner},
        )
        return told, details_N

    def state(self) -> Mapping[str, ShardedRows]:
        return {PART: ShardedRows(self.head.tensors(), self.head.num_classes, self.head.watch)}

    def numbers(self) -> Mapping[str, Mapping[str, float]]:
        return {PART: self.head.numbers()}

    def restore(self, numbers: Mapping[str, Mapping[str, float]], before: Config) -> None:
        mine = self.head.config
        if before.head.rows.dtype != mine.rows.dtype:
            self.head.refresh_norms()
        if before.head.margin.word() == mine.margin.word():  # another margin's numbers start afresh
            self.head.load_numbers(dict(numbers.get(PART, {})))

    def forget(self, classes: Tensor) -> None:
        self.head.forget(classes)
