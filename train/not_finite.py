"""What a run does with a step that gave no finite loss or gradient: it stops, or goes back to its
last checkpoint and leaves the batch out."""

import contextlib
from dataclasses import dataclass
from typing import NoReturn

from manyfaces.configs.errors import UserError
from manyfaces.configs.not_finite.not_finite import OnNotFinite
from manyfaces.data.feed.loader import Loader
from manyfaces.train.checkpoint.writer import Checkpointer
from manyfaces.train.left_out import LeftOut, LeftOutBatches
from manyfaces.train.record import Record


class GoingBack(Exception):
    """The run goes on from its last checkpoint; nothing in memory may be kept."""


@dataclass(frozen=True)
class NotFinite:
    """Follows the setting `train.on_not_finite`."""

    policy: OnNotFinite
    left_out: LeftOutBatches
    loader: Loader
    checkpointer: Checkpointer
    record: Record

    def skips(self, position: int) -> bool:
        """Whether the batch at this position is one that was left out."""
        loader = self.loader
        return self.left_out.leaves_out(position, loader.order, loader.batch_size)

    def take(self, position: int, step: int, reason: str) -> NoReturn:
        """The batch at this position gave no finite numbers in this step. Collective. Raises
        `GoingBack` on every rank once all is recorded, or `UserError` on every rank."""
        self.checkpointer.wait()  # what is being written is good
        dataset, order = self.loader.dataset, self.loader.order
        ids = [int(i) for i in order.ids(position, self.loader.batch_size)]
        names = [dataset.name(i) for i in ids]
        batch = LeftOut(position=position, step=step, reason=reason, samples=ids, names=names)
        if len(self.left_out) >= self.policy.most_left_out:
            self._tell("not_finite", reason, batch)
            raise UserError(self._stopped(batch))
        self.left_out.add(batch)
        good = self.checkpointer.last_good
        line = (
            f"{_told(batch, self.left_out.file.name)}; going back to "
            f"{good.name if good else 'the start'} and leaving this batch out "
            f"({len(self.left_out)} of at most {self.policy.most_left_out})"
        )
        self._tell("left_out", line, batch)
        raise GoingBack

    def _tell(self, kind: str, line: str, batch: LeftOut) -> None:
        # Only rank 0 has a record: where it cannot be written the others must not learn it.
        with contextlib.suppress(OSError):
            where = {"step": batch.step, "position": batch.position}
            self.record.event(kind, line, **where, samples=batch.names)

    def _stopped(self, batch: LeftOut) -> str:
        """Name the step, its samples, the last good checkpoint and what can be done."""
        before = ""
        if self.left_out:
            before = f"left out before it: {self.left_out}; "
        remedy = "train.on_not_finite=leave_out, to go on without this batch"
        if self.policy.most_left_out:
            remedy = f"a larger train.on_not_finite.at_most than {self.policy.most_left_out}"
        return (
            f"{_told(batch, 'events.jsonl')}; {before}nothing after it is kept; the last good "
            f"checkpoint is {self.checkpointer.last_good or 'none'}; lower train.optimizer.lr or "
            "look at the samples, and start from it under a new run.name with run.resume_from, or "
            f"run the same command with {remedy}"
        )


def _told(batch: LeftOut, file: str) -> str:
    last = batch.position + len(batch.samples) - 1
    return (
        f"step {batch.step}: {batch.reason}, not finite, at samples {batch.position} to {last} "
        f"({', '.join(batch.names[:3])}, ... all {len(batch.names)} in {file})"
    )
