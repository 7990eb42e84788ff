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
from manyfaces.train.checkpoint.layout import Candidate, candidates, folder_name
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

    What is committed while another one is sent waits, and that is told. After an upload follow all
    that stand in the run's folder, that the settings keep and that the store does not have, the
    newest first. An upload that fails is told, and the next checkpoint is tried;
    `settings.max_failures` in a row make the next `offer` raise `UserError`, on every rank alike;
    one that follows fails once, and is no reason to stop. `record` gives the files of the run's
    record, which go along. `may_write` is asked on rank 0 before anything is changed there, and
    raises `UserError` where another process has taken the run over.
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
        self._lock = threading.Lock()
        self._is_sending = False
        """What stands by now is going to follow what is being sent."""
        self._has_more = False
        """A checkpoint was offered while another one was sent; both flags count on rank 0."""
        self._given_up: set[int] = set()
        """Steps whose checkpoints are not tried again; on rank 0."""
        self._hurries = False
        """The run is to end: nothing but its last checkpoint is worth a wait."""
        self._error = ""
        """Nothing more can be sent: a rank is gone, or the run is another process's."""

    def begin(self, checkpoint: Path | None) -> None:
        """Tell which checkpoint of the run's own the session resumes from, if any: it is sent where
        the store does not have it. A store that is away is told, and tried again. Collective."""
        self._hurries = True
        self._wait()  # of a run that goes back, whose thread talks in the same group
        self._hurries = False
        self._given_up.clear()
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
        with self._lock:  # rank 0 decides, as it does about what follows
            is_busy = torch.tensor([int(self._is_sending)])
            self._has_more = self._is_sending
        dist.broadcast(is_busy, 0, group=group)
        self._latest = (step, checkpoint)
        if is_busy.item():
            if self.in_use != checkpoint:
                self._tell_failed(
                    step,
                    f"step {step} waits, as {self._sent_now()} is still on its way to "
                    f"{self.store.where}; it follows if it is still kept by then",
                )
            return
        self._wait()  # for the other ranks, where nothing is sent any more either
        if told := self._error or self._stops:
            raise UserError(told)
        if self.stored != step:  # else it has followed another one already
            self._start(step, checkpoint, last=False)

    def finish(self, *, everything: bool = False) -> None:
        """Wait until the last checkpoint that was offered is in the store; for `everything`, all
        that are kept. Raises `UserError` where the last cannot be had there. Collective."""
        self._hurries = not everything
        self._wait()
        if self._latest is None or (self.stored == self._latest[0] and not everything):
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
        self.in_use, self._is_sending = checkpoint, True
        self._thread = threading.Thread(
            target=self._upload_all, args=(step, checkpoint, last), name="upload", daemon=True
        )
        self._thread.start()

    def _upload_all(self, step: int, checkpoint: Path, last: bool) -> None:
        """Send the checkpoint, where it is not there yet, and what follows it."""
        try:
            if self.stored != step and not self._upload(step, checkpoint, counts=not last):
                return
            while (following := self._next(checkpoint.parent)) is not None:
                self.in_use = following.path
                if not self._upload(following.step, following.path, counts=False):
                    self._give_up(following)
                    return
        finally:
            self.in_use, self._is_sending = None, False

    def _next(self, folder: Path) -> Candidate | None:
        """The newest checkpoint in this folder that the store lacks, and that is to follow; None
        where nothing is, or the store does not say. Collective."""
        try:
            found = [on_all_ranks(partial(self._lacking, folder), self.group)]
            dist.broadcast_object_list(found, 0, group=self.group)
        except UserError:  # the next upload meets the same
            return None
        except RuntimeError as error:  # some rank is gone
            self._error = f"what follows an upload: {error}"
            return None
        return found[0]

    def _lacking(self, folder: Path) -> Candidate | None:
        """What `_next` gives, on rank 0. From where it is None, `offer` starts anew."""
        while self.rank == 0 and not self._hurries:
            self._has_more = False
            scores = read_scores(folder.parent, self.settings.best)
            for each in self.store.lacking(folder, self.settings, scores):
                if each.step not in self._given_up:
                    return each
            with self._lock:
                self._is_sending = self._has_more
            if not self._is_sending:
                break
        return None

    def _give_up(self, checkpoint: Candidate) -> None:
        """Try this one no more, and tell it, unless it is not kept any more or nothing can be
        sent."""
        self._given_up.add(checkpoint.step)
        if not self._error and checkpoint.path.exists():
            told = f"upload of step {checkpoint.step} FAILED ({self._fault})"
            self._tell_failed(checkpoint.step, f"{told}; {self._known()}")

    def _upload(self, step: int, checkpoint: Path, *, counts: bool) -> bool:
        """Send the checkpoint; whether the store has it, which is the same on all ranks. With
        `counts` a failure is one of those of which too many end the training."""
        began = time.monotonic()
        try:
            if (told := self._other_writer(step)) or (told := self._taken_over()):
                self._error = told
                return False
            commit = on_all_ranks(lambda: committed(checkpoint), self.group)
            on_all_ranks(partial(self._on_first, self.store.withdraw, step), self.group)
            mine = largest_first(commit, self.rank, self.world_size)
            put = partial(self.store.put, checkpoint, mine, self._moved.add)
            watched(put, self.group, self._got_on.set, self._moved)
            if told := self._taken_over():
                self._error = told
                return False
            complete = partial(self._complete, checkpoint, step, commit)
            on_all_ranks(partial(self._on_first, complete), self.group)
        except UserError as error:
            self._fault = str(error)
            if counts:
                self._count_failure(step)
            return False
        except RuntimeError as error:  # some rank is gone
            self._error = f"upload of step {step}: {error}"
            return False
        finally:
            self.in_use = None
        self._failures, self._stops = 0, ""
        self.stored = max(step, -1 if self.stored is None else self.stored)
        self._tell_sent(step, commit, time.monotonic() - began)
        return True

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

    def _count_failure(self, step: int) -> None:
        """Tell what failed, or that training has to stop because of it."""
        self._failures += 1
        limit, what = self.settings.max_failures, f"upload of step {step} FAILED ({self._fault})"
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
