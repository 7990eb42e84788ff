"""A run at a URL: what an object store holds of it, and when a checkpoint is there.

    URL/NAME/checkpoints/step-00001000/   the files of the checkpoint as they stand in the folder,
                                          COMMIT.json after all others
    URL/NAME/metrics.jsonl, ...           the record, as of the last checkpoint or the run's end

Stores have no renames, but each object is there whole or not at all: without COMMIT.json there is
no checkpoint. That object is put last, and it is removed first. An upload that was killed may leave
parts of a file unseen in the store, which a rule of the bucket removes that aborts incomplete
multipart uploads.
"""

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import redact
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.data.store.faults import Advice, WrongBytesError, status
from manyfaces.data.store.remote import Remote
from manyfaces.train.checkpoint.commit import (
    COMMIT,
    Commit,
    Condition,
    Fault,
    FileFacts,
    commit_folder,
    flush,
    parse_commit,
    read_commit,
)
from manyfaces.train.checkpoint.edit_lock import sweep_edits, unfinished_folder
from manyfaces.train.checkpoint.layout import (
    FREE_SPACE_FACTOR,
    Candidate,
    candidates,
    folder_name,
    make_way,
)
from manyfaces.train.checkpoint.retention import Scores, verdicts
from manyfaces.train.folder import CHECKPOINTS

T = TypeVar("T")
ADVICE = Advice(
    subject="run.dir",
    patience="checkpoint.store_patience_s",
    wrong_bytes="the store holds it so: restore it, or use another checkpoint",
    missing="make the bucket, or correct the URL",
    forbidden="set credentials that may read, list, write and delete there (AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, gcloud's login)",
    no_room="make room or set another run.work_dir",
    then="",
)
TRANSFERS = 4
"""Files that a process sends or fetches at a time; each takes two parts' bytes of memory."""
_NAME = re.compile(rf"{CHECKPOINTS}/step-(\d{{8,}})/(.+)")


class DamagedError(UserError):
    """Bytes of a committed checkpoint are not in the store any more."""


def no_count(num_bytes: int) -> None:
    """Take no notice of bytes, where nobody counts them."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint in a store, or what is left of one."""

    step: int
    sizes: dict[str, int | None]
    """Bytes of its objects by the name of the file."""
    commit: Commit | Fault
    """What its COMMIT.json says, or what is wrong with that or with the sizes of the rest."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all its objects."""
        return sum(size or 0 for size in self.sizes.values())


class RunStore:
    """What a store holds of the run at `url`. Methods raise `UserError`: which object, what was
    tried, the last error, what to do."""

    def __init__(
        self,
        url: str,
        patience_s: float,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.remote = Remote(url, patience_s, tell, advice=ADVICE)
        self.where = redact(self.remote.url)
        """The URL for people, without credentials."""

    def check(self) -> None:
        """Raise `UserError` where the run cannot be kept there: a small object is put and
        removed."""
        if self.remote.read_only:
            raise UserError(
                f"run.dir {self.where}: nothing can be written there; give a folder, or a URL "
                "like s3://BUCKET/PREFIX"
            )
        name = f".probe-{os.urandom(4).hex()}"
        self.remote.write(name, b"manyfaces looks whether it may write here\n")
        self.remote.remove(name)

    def checkpoints(self) -> list[Stored]:
        """All that is named as a checkpoint, newest step first."""
        sizes: dict[int, dict[str, int | None]] = {}
        for name, size in self.remote.tree(CHECKPOINTS).items():
            if (fits := _NAME.fullmatch(name)) is not None:
                sizes.setdefault(int(fits[1]), {})[fits[2]] = size
        return [self._stored(step, sizes[step]) for step in sorted(sizes, reverse=True)]

    def _stored(self, step: int, sizes: dict[str, int | None]) -> Stored:
        if COMMIT not in sizes:
            return Stored(step, sizes, Fault(Condition.UNCOMMITTED, "not committed"))
        commit = self.commit(step)
        if isinstance(commit, Commit) and (wrong := _wrong_sizes(commit, sizes)):
            commit = Fault(Condition.DAMAGED, wrong)
        return Stored(step, sizes, commit)

    def commit(self, step: int) -> Commit | Fault:
        """What the step's COMMIT.json says."""
        body = self.remote.read_if_there(f"{CHECKPOINTS}/{folder_name(step)}/{COMMIT}")
        if body is None:
            return Fault(Condition.UNCOMMITTED, "not committed")
        return parse_commit(body)

    def withdraw(self, step: int) -> None:
        """What stands under this step is no checkpoint from now on, and may be overwritten."""
        self.remote.remove(f"{CHECKPOINTS}/{folder_name(step)}/{COMMIT}")

    def put(
        self, checkpoint: Path, names: Iterable[str], count: Callable[[int], None] = no_count
    ) -> None:
        """Send these files of a checkpoint's folder, several at a time. `count` is told of bytes
        as they go."""
        there = f"{CHECKPOINTS}/{checkpoint.name}"
        _each(lambda name: self.remote.upload(f"{there}/{name}", checkpoint / name, count), names)

    def put_commit(self, checkpoint: Path, step: int, commit: Commit) -> None:
        """Make a checkpoint of what was sent: its COMMIT.json is put once all other files are there
        in their sizes, and nothing else is."""
        there = f"{CHECKPOINTS}/{folder_name(step)}"
        sizes = {
            name.removeprefix(f"{there}/"): size for name, size in self.remote.tree(there).items()
        }
        _each(self.remote.remove, [f"{there}/{name}" for name in {*sizes} - {*commit.files}])
        if wrong := _wrong_sizes(commit, sizes):
            raise UserError(f"{self.where}/{there}: {wrong}; does another process write there?")
        self.remote.upload(f"{there}/{COMMIT}", checkpoint / COMMIT)

    def put_record(self, run: Path, files: Iterable[Path]) -> None:
        """Send these files of the run's folder."""
        _each(lambda file: self.remote.upload(file.relative_to(run).as_posix(), file), list(files))

    def read_record(self, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of those of these files of the record that are there."""
        found = {name: self.remote.read_if_there(name) for name in names}
        return {name: body for name, body in found.items() if body is not None}

    def retain(
        self, step: int, settings: Checkpoint, scores: Scores, standing: Collection[int]
    ) -> None:
        """Remove the checkpoints before `step`, which has just been put, that neither the settings
        keep nor the run's folder, which has the `standing`; and what is left of others. What is
        newer stays, and what is of another version's format."""
        older = [each for each in self.checkpoints() if each.step < step]
        judged = verdicts([_candidate(step), *map(_candidate_of, older)], settings, scores)
        kept = {*standing, *(each.checkpoint.step for each in judged if each.reasons)}
        for each in older:
            condition = each.commit.condition if isinstance(each.commit, Fault) else None
            stays = each.step in kept and condition is not Condition.UNCOMMITTED
            if not stays and condition is not Condition.OTHER_FORMAT:
                self.withdraw(each.step)
                there = f"{CHECKPOINTS}/{folder_name(each.step)}"
                _each(self.remote.remove, [f"{there}/{name}" for name in {*each.sizes} - {COMMIT}])

    def lacking(self, folder: Path, settings: Checkpoint, scores: Scores) -> list[Candidate]:
        """The checkpoints in the run's folder of them, newest first, that the settings keep and
        that are not here, or are others here."""
        stored = {each.step: each.commit for each in self.checkpoints()}
        judged = verdicts(candidates(folder), settings, scores)
        kept = [each.checkpoint for each in judged if each.reasons]
        whole = [each for each in kept if each.fault is None]
        return [each for each in whole if stored.get(each.step) != read_commit(each.path)]

    def corrupt_files(
        self, stored: Stored, folder: Path, count: Callable[[int], None] = no_count
    ) -> list[Fault]:
        """What is wrong with the bytes of each file of a committed checkpoint, empty if nothing is;
        one after the other is fetched to a temporary folder in this one. `count` is told of bytes
        as they come."""
        if isinstance(stored.commit, Fault):
            return [stored.commit]
        faults = []
        folder.mkdir(parents=True, exist_ok=True)
        sweep_edits(folder)
        with unfinished_folder(folder / folder_name(stored.step)) as temporary:
            for name, facts in stored.commit.files.items():
                there = f"{CHECKPOINTS}/{folder_name(stored.step)}/{name}"
                try:
                    self._fetch(there, temporary / "file", facts, count)
                except DamagedError as error:
                    faults.append(Fault(Condition.DAMAGED, f"{name}: {error}"))
        return faults

    def _fetch(
        self, there: str, path: Path, facts: FileFacts, count: Callable[[int], None]
    ) -> None:
        try:
            self.remote.fetch(there, path, facts.bytes, facts.sha256, count=count)
        except UserError as error:
            if isinstance(error.__cause__, WrongBytesError):
                raise DamagedError("digest differs") from error
            if status(error) == 404:
                raise DamagedError("missing") from error
            raise

    def fetch(self, stored: Stored, folder: Path, count: Callable[[int], None] = no_count) -> Path:
        """Have the checkpoint in this folder of checkpoints, under its own name once every byte was
        compared with what was committed; returns its path. Raises `DamagedError` where they are
        other ones, and `UserError`, also where there is no room for it."""
        commit = stored.commit
        if isinstance(commit, Fault):
            raise DamagedError(str(commit))
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = stored.num_bytes * FREE_SPACE_FACTOR, shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(
                f"disk full: the checkpoint of step {stored.step} in {self.where} needs "
                f"{needed / 1e6:,.1f} MB, free {free / 1e6:,.1f} MB, at {folder}; {ADVICE.no_room}"
            )
        final, attempt = folder / folder_name(stored.step), os.urandom(4).hex()
        temporary = folder / f"{final.name}.tmp-{attempt}"
        try:
            for name in commit.files:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)

            def one(name: str) -> None:
                there, path = f"{CHECKPOINTS}/{final.name}/{name}", temporary / name
                try:
                    self._fetch(there, path, commit.files[name], count)
                except DamagedError as error:
                    raise DamagedError(f"{name}: {error}") from error
                flush(path)

            _each(one, commit.files)
            make_way(final, attempt)
            commit_folder(temporary, final, stored.step, commit.world_size, commit.files)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final


def _candidate(step: int, fault: Fault | None = None) -> Candidate:
    return Candidate(Path(folder_name(step)), step, fault)


def _candidate_of(stored: Stored) -> Candidate:
    return _candidate(stored.step, stored.commit if isinstance(stored.commit, Fault) else None)


def _each(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Do the work for all items, several at a time; the first error ends it."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def largest_first(commit: Commit, part: int, parts: int) -> Sequence[str]:
    """One of several parts of a checkpoint's files, all of about the same bytes."""
    names = sorted(commit.files, key=lambda name: (-commit.files[name].bytes, name))
    return names[part::parts]


def _wrong_sizes(commit: Commit, sizes: dict[str, int | None]) -> str:
    """What the sizes of the objects tell is wrong; "" if nothing is."""
    for name, facts in commit.files.items():
        if name not in sizes:
            return f"{name}: missing, expected {facts.bytes} bytes"
        if sizes[name] not in (None, facts.bytes):
            return f"{name}: {sizes[name]} bytes, expected {facts.bytes}"
    return ""
