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

    def prefetch(self, moment: Moment) -> None:
        self.head.prefetch(moment.position, moment.batch_size)

    def loss(self, forward: Forward, batch: Batch, moment: Moment) -> Loss:
        embeddings_ND = forward.embeddings(self.branch)
        step = self.head.step(
            embeddings_ND,
            batch.labels_N,
            lr=moment.lr,
            position=moment.position,
            batch_size=moment.batch_size,
            last=moment.last,
            weight=self.weight,
        )
        return Loss(
            surrogate=(embeddings_ND * step.d_embeddings_ND).sum(),
            value=step.loss,
            finite=step.finite,
            last=step.last,
            checks={"a label of this batch has no class row, or several": step.one_owner},
        )

    def state(self) -> Mapping[str, ShardedRows]:
        return {PART: ShardedRows(self.head.tensors(), self.head.num_classes)}

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
