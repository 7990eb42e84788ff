"""Committed checkpoints go to the store of a run in the background: each rank sends a part of the
files, and the steps of the training wait for none of it."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.train.checkpoint.commit import Commit, committed, read_commit
from manyfaces.train.checkpoint.layout import candidates, folder_name
from manyfaces.train.checkpoint.progress import Moved, joined, nothing, watched
from manyfaces.train.checkpoint.retention import read_scores
from manyfaces.train.checkpoint.store import RunStore, largest_first


@dataclass(frozen=True)
class UploadHooks:
    """Functions that uploads call, on every rank."""

    sent: Callable[[int, str], None] = lambda step, message: None
    """The store has a checkpoint of this step."""
    failed: Callable[[int, str], None] = lambda step, message: None
    """It does not have that of this step, and training goes on."""
    beat: Callable[[], None] = nothing
    """What is waited for gets on."""


class Uploads:
    """Sends one checkpoint at a time to the store, from a background thread on every rank; its
    collectives use a gloo group of their own.

    What is committed while another one is sent is left out for good, and told; but for the last
    one, which `finish` sends. An upload that fails is told
    too, and the next checkpoint is tried; `settings.max_failures` in a row make the next `offer`
    raise `UserError`, on every rank alike. `record` gives the files of the run's record, which go
    along. `may_write` is asked on rank 0 before anything is changed there, and raises `UserError`
    where another process has taken the run over.
    """

    def __init__(
        self,
        store: RunStore,
        settings: Checkpoint,
        hooks: UploadHooks = UploadHooks(),
        record: Callable[[], list[Path]] = list,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self.settings, self.hooks = store, settings, hooks
        self.record, self.may_write = record, may_write
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo")
        self.stored: int | None = None
        """The newest step that is known to be in the store; the same on all ranks."""
        self.in_use: Path | None = None
        """The checkpoint that is being sent."""
        self._latest: tuple[int, Path] | None = None
        """What was offered last."""
        self._began_with: set[int] | None = None
        """Steps that the store had when the session began, and those that this session has sent; on
        rank 0. None where the store did not say."""
        self._thread: threading.Thread | None = None
        self._moved, self._got_on = Moved(), threading.Event()
        self._failures = 0
        """Uploads that failed since the last that did not; the same on all ranks."""
        self._fault = ""
        """Why the last upload failed."""
        self._stops = ""
        """So many have failed that training stops."""
        self._error = ""
        """Nothing more can be sent: a rank is gone, or the run is another process's."""

    def begin(self, checkpoint: Path | None) -> None:
        """Tell which checkpoint of the run's own the session resumes from, if any: it is sent where
        the store does not have it. A store that is away is told, and tried again. Collective."""
        self._wait()  # of a run that goes back, whose thread talks in the same group
        there = [False]
        if self.rank == 0:
            with contextlib.suppress(UserError):  # the upload that follows meets the same
                there = [self._has(checkpoint)]
        dist.broadcast_object_list(there, 0, group=self.group)
        self.stored, self._latest = None, None
        if checkpoint is None:
            return
        step = on_all_ranks(lambda: committed(checkpoint).step, self.group)
        if there[0]:
            self.stored, self._latest = step, (step, checkpoint)
        else:
            self.offer(step, checkpoint, self.group)

    def _has(self, checkpoint: Path | None) -> bool:
        """Whether the store has the same checkpoint."""
        stored = {each.step: each.commit for each in self.store.checkpoints()}
        self._began_with = set(stored)
        commit = read_commit(checkpoint) if checkpoint is not None else None
        return isinstance(commit, Commit) and stored.get(commit.step) == commit

    def offer(self, step: int, checkpoint: Path, group: dist.ProcessGroup) -> None:
        """A checkpoint of this step stands: begin to send it, unless another one is being sent.
        Collective, of a group that nothing else uses at the moment."""
        busy = torch.tensor([int(self._thread is not None and self._thread.is_alive())])
        dist.all_reduce(busy, dist.ReduceOp.MAX, group=group)
        self._latest = (step, checkpoint)
        if busy.item():
            self._tell_failed(
                step,
                f"step {step} is left out of {self.store.where}, as {self._sent_now()} is still on "
                "its way; the next checkpoint is sent",
            )
            return
        if told := self._error or self._stops:
            raise UserError(told)
        self._start(step, checkpoint, last=False)

    def finish(self) -> None:
        """Wait until the last checkpoint that was offered is in the store. Raises `UserError` where
        it cannot be had there. Collective."""
        self._wait()
        if self._latest is None or self.stored == self._latest[0]:
            return
        step, checkpoint = self._latest
        if not self._error:
            self._start(step, checkpoint, last=True)
            self._wait()
        if self.stored != step:
            raise UserError(
                self._error
                or f"the last checkpoint, of step {step}, is not in {self.store.where} "
                f"({self._fault}); {self._known()}; it stays at {checkpoint}, and the same command "
                "sends it"
            )

    def _wait(self) -> None:
        if self._thread is not None:
            joined(self._thread, self._got_on, self.hooks.beat)
            self._thread = None

    def _sent_now(self) -> str:
        return self.in_use.name if self.in_use is not None else "another one"

    def _known(self) -> str:
        last = "none" if self.stored is None else folder_name(self.stored)
        return f"the last one there is {last}"

    def _start(self, step: int, checkpoint: Path, *, last: bool) -> None:
        self.in_use = checkpoint
        self._thread = threading.Thread(
            target=self._upload, args=(step, checkpoint, last), name="upload", daemon=True
        )
        self._thread.start()

    def _upload(self, step: int, checkpoint: Path, last: bool) -> None:
        """Send the checkpoint; what it comes to is the same on all ranks."""
        began = time.monotonic()
        try:
            if (told := self._other_writer(step)) or (told := self._taken_over()):
                self._error = told
                return
            commit = on_all_ranks(lambda: committed(checkpoint), self.group)
            on_all_ranks(partial(self._on_first, self.store.withdraw, step), self.group)
            mine = largest_first(commit, self.rank, self.world_size)
            put = partial(self.store.put, checkpoint, mine, self._moved.add)
            watched(put, self.group, self._got_on.set, self._moved)
            if told := self._taken_over():
                self._error = told
                return
            complete = partial(self._complete, checkpoint, step, commit)
            on_all_ranks(partial(self._on_first, complete), self.group)
        except UserError as error:
            self._failed(step, str(error), last)
            return
        except RuntimeError as error:  # some rank is gone
            self._error = f"upload of step {step}: {error}"
            return
        finally:
            self.in_use = None
        self._failures, self._stops, self.stored = 0, "", step
        self._tell_sent(step, commit, time.monotonic() - began)

    def _tell_sent(self, step: int, commit: Commit, seconds: float) -> None:
        size = sum(facts.bytes for facts in commit.files.values()) / 1e6
        with contextlib.suppress(OSError):  # a full disk may not take the line
            self.hooks.sent(
                step,
                f"step {step} is in {self.store.where}: {size:,.1f} MB in {seconds:,.1f} s",
            )

    def _on_first(self, work: Callable[..., None], *args: object) -> None:
        if self.rank == 0:
            work(*args)

    def _complete(self, checkpoint: Path, step: int, commit: Commit) -> None:
        """Put what comes after the files. The record goes before COMMIT.json: what it has beyond a
        checkpoint is forgotten by a resume, and what it lacks would be lost."""
        run = checkpoint.parent.parent
        self.store.put_record(run, self.record())
        if self._began_with is not None:
            self._began_with.add(step)
        self.store.put_commit(checkpoint, step, commit)
        try:  # the checkpoint is there, whatever becomes of the older ones
            standing = {each.step for each in candidates(checkpoint.parent) if each.fault is None}
            scores = read_scores(run, self.settings.best)
            self.store.retain(step, self.settings, scores, standing)
        except (UserError, OSError) as error:
            self._tell_failed(step, f"older checkpoints are not removed: {error}")

    def _other_writer(self, step: int) -> str:
        """Who else has written to the store since the session began, in a line for people; "" where
        nobody has. Collective."""

        def look() -> str:
            if self.rank != 0:
                return ""
            steps = {
                each.step for each in self.store.checkpoints() if isinstance(each.commit, Commit)
            }
            if self._began_with is None:
                self._began_with = steps
            newer = [each for each in steps - self._began_with if each > step]
            if not newer:
                return ""
            return (
                f"{self.store.where}: another process has put the checkpoint of step {max(newer)} "
                "there since this run began; stop one of them, or give another run.name"
            )

        told = [on_all_ranks(look, self.group)]
        dist.broadcast_object_list(told, 0, group=self.group)
        return told[0]

    def _taken_over(self) -> str:
        """Who has taken the run over, in a line for people; "" where nobody has. Collective."""
        try:
            on_all_ranks(partial(self._on_first, self.may_write), self.group)
        except UserError as error:
            return str(error)
        return ""

    def _failed(self, step: int, told: str, last: bool) -> None:
        """Tell what failed, or that training has to stop because of it."""
        self._failures, self._fault = self._failures + 1, told
        if last:
            return
        limit, what = self.settings.max_failures, f"upload of step {step} FAILED ({told})"
        if self._failures >= limit:
            self._stops = (
                f"{what}, {self._failures} in a row (checkpoint.max_failures={limit}): training "
                f"stops; {self._known()}; see to the store, and run the same command to resume"
            )
            return
        self._tell_failed(step, f"{what}, training goes on; {self._known()}")

    def _tell_failed(self, step: int, message: str) -> None:
        with contextlib.suppress(OSError):  # a full disk may not take the line
            self.hooks.failed(step, message)
