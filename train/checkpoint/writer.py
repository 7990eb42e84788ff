"""Checkpoints are written in the background to a temporary folder and committed by one rename: they
exist whole or not at all."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.configs.split import class_share
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.train.checkpoint.commit import Files, commit_folder, digest
from manyfaces.train.checkpoint.finite import refuse_not_finite
from manyfaces.train.checkpoint.layout import (
    BACKBONE,
    BESIDE_BACKBONE,
    FREE_SPACE_FACTOR,
    OPTIMIZER,
    STATE,
    folder_name,
    make_way,
    sweep,
)
from manyfaces.train.checkpoint.progress import joined, nothing, watched
from manyfaces.train.checkpoint.retention import Retention
from manyfaces.train.checkpoint.sharded import write_rows
from manyfaces.train.checkpoint.snapshot import HostCopy, Snapshot
from manyfaces.train.checkpoint.tensor_file import write_tensors
from manyfaces.train.checkpoint.uploads import Uploads
from manyfaces.train.objectives.objective import ShardedRows


@dataclass(frozen=True)
class Hooks:
    """Functions that a checkpointer calls, on every rank."""

    committed: Callable[[int, Path], None] = lambda step, path: None
    """A checkpoint of this step stands."""
    failed: Callable[[int, str], None] = lambda step, message: None
    """That of this step could not be written, and training goes on."""
    retained: Callable[[int, str], None] = lambda step, message: None
    """What is kept of the checkpoints after this step, and which were removed; on rank 0 alone."""
    beat: Callable[[], None] = nothing
    """What is waited for gets on."""
    moment: Callable[[str, int], None] = lambda name, step: None
    """The write of the checkpoint of this step has come to `checkpoint:...`, in this rank."""


class Checkpointer:
    """Writes one checkpoint at a time on every rank, in a background thread from a copy of the
    state, or at once from the state itself; its collectives use a gloo group of their own.
    `may_write` is asked on rank 0 before anything is removed or committed, and raises `UserError`
    where another process has taken the run over. What is committed goes on to the store that
    `uploads` sends to.

    All methods but `began_with` and `last_good` are collective. A write that fails is told and the
    next one is tried; `settings.max_failures` in a row, one of the last checkpoint of a run, or a
    state that is not finite make the next `save` or `wait` raise `UserError`, on every rank alike.
    """

    def __init__(
        self,
        folder: Path,
        settings: Checkpoint,
        hooks: Hooks = Hooks(),
        may_write: Callable[[], None] = lambda: None,
        uploads: Uploads | None = None,
    ) -> None:
        self.folder, self.settings, self.hooks = folder, settings, hooks
        self.may_write, self.uploads = may_write, uploads
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo")
        attempt = [os.urandom(4).hex()]
        dist.broadcast_object_list(attempt, 0, group=self.group)
        self.attempt = attempt[0]
        self._copy = HostCopy()
        self._retention = Retention(folder, settings)
        self._trusted: list[Path] = []
        self._thread: threading.Thread | None = None
        self._got_on = threading.Event()
        """The background thread has moved bytes, on some rank."""
        self._failures = 0
        """Writes that failed since the last that did not; the same on all ranks."""
        self._error: str | None = None
        self._upload_error: str | None = None

    @property
    def last_good(self) -> Path | None:
        """The last checkpoint that is known to be good to the byte: this session wrote it, or began
        with it."""
        return self._trusted[-1] if self._trusted else None

    def began_with(self, checkpoint: Path) -> None:
        """Tell which checkpoint the session resumes from, all of whose bytes are as committed."""
        self._trusted.append(checkpoint)

    def reserve(self, snapshot: Snapshot) -> None:
        """Take the memory that snapshots like this one are copied to: where there is not enough, it
        is told before the first step, and no step waits for fresh pages. Raises `UserError`."""
        if self.settings.background:
            mine = snapshot.of_rank(self.rank)
            on_all_ranks(lambda: self._copy.take(mine), self.group)

    def save(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Begin to copy the state and to write it, or write it; waits for the write before. `last`
        says that the run ends here.

        In the background the rows of `ShardedRows.watch` may be changed as soon as this returns,
        by steps that tell it; whatever else the snapshot holds is copied by then.
        """
        self.wait()
        on_all_ranks(self._refuse_taken_over, self.group)
        mine, step = snapshot.of_rank(self.rank), snapshot.state.step
        if not self.settings.background:
            self._write(step, lambda: mine, last, self.hooks.beat)
            self._raise()
            return
        self._thread = threading.Thread(
            target=self._write,
            args=(step, self._begin_copy(mine), last, self._got_on.set),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()

    def _begin_copy(self, mine: Snapshot) -> Callable[[], Snapshot]:
        """What gives the copy. Where this rank has no memory for it, that raises `UserError`: the
        thread is the one that talks to the other ranks."""
        try:
            return self._copy.begin(mine)
        except UserError as error:
            return partial(_fail, error)

    def wait(self) -> None:
        """Wait until what is being written is committed or has failed."""
        if self._thread is not None:
            joined(self._thread, self._got_on, self.hooks.beat)
            self._thread = None
        self._raise()

    def retain(self, step: int) -> None:
        """Remove the checkpoints that the metrics recorded up to this step leave no reason to
        keep; a save does so too."""
        self.wait()
        on_all_ranks(partial(self._retain, step), self.group)

    def _retain(self, step: int) -> None:
        if self.rank != 0:
            return
        self.may_write()
        in_use = self.uploads.in_use if self.uploads is not None else None
        if told := self._retention.apply(self._trusted, in_use):
            with contextlib.suppress(OSError):  # on a full disk, room was made all the same
                self.hooks.retained(step, told)

    def _raise(self) -> None:
        if self._error is not None:
            raise UserError(f"{self.folder}: {self._error}")
        if self._upload_error is not None:  # which names the store
            raise UserError(self._upload_error)

    def _refuse_taken_over(self) -> None:
        if self.rank == 0:
            self.may_write()

    def _make_room(self, needed_bytes: int) -> None:
        """Give back what writes that were cut off had taken of the free space."""
        with self._as_user_error(needed_bytes):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:
                sweep(self.folder)

    def _refuse_full_disk(self, needed_bytes: int) -> None:
        """Raise `UserError` where the free space is too little for all ranks' parts."""
        with self._as_user_error(needed_bytes):
            if shutil.disk_usage(self.folder).free < needed_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    @contextlib.contextmanager
    def _as_user_error(self, needed_bytes: int) -> Iterator[None]:
        """Raises what the system refuses as `UserError` that says where, and what is missing."""
        try:
            yield
        except OSError as error:
            where = error.filename or self.folder
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"{error.strerror or error} at {where}") from error
            free = shutil.disk_usage(self.folder).free
            raise UserError(
                f"disk full: needs {needed_bytes / 1e6:,.1f} MB, free {free / 1e6:,.1f} MB, at "
                f"{where}"
            ) from error

    def _failed(self, step: int, told: str, last: bool) -> None:
        """Tell what failed, or that training has to stop because of it."""
        self._failures += 1
        good = self.last_good
        known = f"the last good checkpoint is {good.name if good else 'none'}"
        limit = self.settings.max_failures
        if last or self._failures >= limit:
            row = "" if last else f", {self._failures} in a row (checkpoint.max_failures={limit})"
            what = "the last of the run" if last else "training stops"
            self._error = (
                f"{told}{row}: {what}; {known}; free some space there or see to the disk, and run "
                "the same command to resume"
            )
            return
        # A full disk may not take this line either, and that ends no training.
        with contextlib.suppress(OSError):
            self.hooks.failed(step, f"{told}, training goes on; {known}")

    def _write(
        self, step: int, copied: Callable[[], Snapshot], last: bool, beat: Callable[[], None]
    ) -> None:
        """Write, commit and what comes after it; `copied` gives this rank's part."""
        final = self.folder / folder_name(step)
        temporary = self.folder / f"{final.name}.tmp-{self.attempt}"
        prepared = self._prepared(step, copied, last, beat)
        if prepared is None:
            return
        snapshot, needed_bytes = prepared
        try:
            written = partial(self._write_local, temporary, snapshot, needed_bytes)
            files = self._gathered(watched(written, self.group, beat))
            if self._taken_over():
                return
            commit = partial(self._commit, temporary, final, step, files, needed_bytes)
            on_all_ranks(commit, self.group)
        except UserError as error:
            # All ranks are done with the folder, and the run needs the space.
            if self.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            self._failed(step, f"checkpoint of step {step} FAILED ({error})", last)
            return
        except Exception as error:  # some rank is gone
            self._error = f"checkpoint of step {step}: {error}"
            return
        self._trusted.append(final)
        try:
            on_all_ranks(partial(self._after_commit, step, final, needed_bytes), self.group)
        except UserError as error:
            told = (
                f"checkpoint of step {step} is committed, but what comes after it FAILED ({error})"
            )
            self._failed(step, told, last=False)
        except RuntimeError as error:  # some rank is gone
            self._error = f"what comes after the checkpoint of step {step}: {error}"
            return
        else:
            self._failures = 0
        try:
            if self.uploads is not None:
                self.uploads.offer(step, final, self.group)
        except (UserError, RuntimeError) as error:
            self._upload_error = str(error)

    def _prepared(
        self, step: int, copied: Callable[[], Snapshot], last: bool, beat: Callable[[], None]
    ) -> tuple[Snapshot, int] | None:
        """This rank's part, which is finite, and the bytes that all ranks' parts need, for which
        there is room; None where it is told why there is nothing to write."""
        try:
            # First of all: until it is copied, steps have to copy what they change.
            snapshot = on_all_ranks(copied, self.group)
            needed = torch.tensor([snapshot.num_bytes])
            dist.all_reduce(needed, group=self.group)
        except Exception as error:  # no memory, or some rank is gone
            self._error = f"checkpoint of step {step}: {error}"
            return None
        needed_bytes = int(needed.item() * FREE_SPACE_FACTOR)
        try:
            # No rank measures before rank 0 has made room.
            on_all_ranks(partial(self._make_room, needed_bytes), self.group)
            on_all_ranks(partial(self._refuse_full_disk, needed_bytes), self.group)
        except UserError as error:
            self._failed(step, f"checkpoint of step {step} FAILED ({error})", last)
            return None
        except RuntimeError as error:  # some rank is gone
            self._error = f"checkpoint of step {step}: {error}"
            return None
        try:
            watched(partial(refuse_not_finite, snapshot.tensors), self.group, beat)
        except RuntimeError as error:
            self._error = f"checkpoint of step {step}: {error}"
            return None
        except UserError as error:
            good = self.last_good or "none"
            self._error = (
                f"step {step}: {error}; no checkpoint of it is kept; the last good one is {good}; "
                "lower train.optimizer.lr or look at the samples, and start from it under a new "
                "run.name with run.resume_from"
            )
            return None
        return snapshot, needed_bytes

    def _taken_over(self) -> bool:
        """Whether the run is another process's by now: that is no failed write, and ends this one.
        Collective."""
        try:
            on_all_ranks(self._refuse_taken_over, self.group)
        except UserError as error:
            self._error = str(error)
            return True
        return False

    def _write_local(self, folder: Path, snapshot: Snapshot, needed_bytes: int) -> Files:
        """Write this rank's part; facts of its files."""
        with self._as_user_error(needed_bytes):
            folder.mkdir(parents=True, exist_ok=True)
            self.hooks.moment("checkpoint:rows", snapshot.state.step)
            files: Files = {}
            for name, part in snapshot.objective.items():
                if isinstance(part, ShardedRows):
                    (folder / name).mkdir(exist_ok=True)
                    first, _ = class_share(part.num_rows, self.rank, self.world_size)
                    rows = write_rows(folder / name, part.tensors, first, self.rank)
                    files |= {f"{name}/{file}": facts for file, facts in rows.items()}
                elif self.rank == 0:
                    file = f"{name}.safetensors"
                    files[file] = write_tensors(folder / file, part.tensors)
            files |= self._write_network(folder, snapshot) if self.rank == 0 else {}
            self.hooks.moment("checkpoint:written", snapshot.state.step)
            return files

    @staticmethod
    def _write_network(folder: Path, snapshot: Snapshot) -> Files:
        """Write the network and what is no tensor; facts of the files."""
        network = {BACKBONE: snapshot.backbone, OPTIMIZER: snapshot.optimizer}
        if snapshot.beside_backbone:
            network[BESIDE_BACKBONE] = snapshot.beside_backbone
        files = {file: write_tensors(folder / file, each) for file, each in network.items()}
        write_atomic(folder / STATE, snapshot.state.to_json())
        others = [STATE]
        if snapshot.identities is not None:
            shutil.copyfile(snapshot.identities, folder / IDENTITIES)
            others.append(IDENTITIES)
        return files | digest(folder, others)

    def _gathered(self, mine: Files) -> Files:
        """Facts of the files of all ranks."""
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, mine, group=self.group)
        return {name: facts for files in found for name, facts in files.items()}

    def _commit(
        self, temporary: Path, final: Path, step: int, files: Files, needed_bytes: int
    ) -> None:
        with self._as_user_error(needed_bytes):
            self.hooks.moment("checkpoint:commit", step)
            if self.rank == 0:
                self.may_write()
                make_way(final, self.attempt)
                named = partial(self.hooks.moment, "checkpoint:rename", step)
                commit_folder(temporary, final, step, self.world_size, files, named)

    def _after_commit(self, step: int, final: Path, needed_bytes: int) -> None:
        with self._as_user_error(needed_bytes):
            self.hooks.moment("checkpoint:after", step)
            self.hooks.committed(step, final)
            self._retain(step)


def _fail(error: UserError) -> NoReturn:
    raise error
