"""`COMMIT.json`: which files a checkpoint has, and which bytes they must hold. Whatever reads a
checkpoint goes through here, so that no other file and no other byte is ever taken for it."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256, relative_name, write_atomic
from manyfaces.configs.parsed import first_fault
from manyfaces.train.checkpoint.progress import MOVED, nothing

COMMIT = "COMMIT.json"
FORMAT = 1
_READERS = 4
"""Files that are hashed at a time, while nothing else goes on: a restore waits for it."""
REMEDY = "restore it, or give another checkpoint"


class FileFacts(BaseModel):
    """What the bytes of a file must be."""

    model_config = ConfigDict(frozen=True, strict=True)
    bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


FileName = Annotated[str, AfterValidator(relative_name)]
Files = dict[FileName, FileFacts]


class Commit(BaseModel):
    """The content of `COMMIT.json`."""

    model_config = ConfigDict(frozen=True, strict=True)
    format: int
    step: NonNegativeInt
    world_size: int
    files: Annotated[Files, Field(min_length=1)]


class Condition(Enum):
    """In which way a checkpoint cannot be used, which decides what may be done with its folder."""

    UNCOMMITTED = auto()
    """Its writing was cut off, or still goes on."""
    OTHER_FORMAT = auto()
    """Another version of manyfaces reads it."""
    UNLISTED = auto()
    """It holds a file besides its own, which a person may have put there."""
    DAMAGED = auto()
    """It has lost a file or part of one."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a checkpoint; as text, a few words for people."""

    condition: Condition
    told: str

    def __str__(self) -> str:
        return self.told


def read_commit(checkpoint: Path) -> Commit | Fault:
    """What a checkpoint's COMMIT.json says, or what is wrong with it."""
    try:
        body = (checkpoint / COMMIT).read_bytes()
    except FileNotFoundError:
        return _damaged(f"no {COMMIT}" if checkpoint.is_dir() else "no such folder")
    except OSError as error:
        return _damaged(f"{COMMIT} cannot be read ({error.strerror})")
    return parse_commit(body)


def parse_commit(body: bytes) -> Commit | Fault:
    """What the bytes of a COMMIT.json say, or what is wrong with them."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return _damaged(f"{COMMIT} is torn")
    number = told.get("format") if isinstance(told, dict) else None
    if isinstance(number, int) and number != FORMAT:
        return Fault(Condition.OTHER_FORMAT, f"format {number}, this version reads {FORMAT}")
    try:
        return Commit.model_validate_json(body)
    except ValidationError as error:
        return _damaged(f"{COMMIT} is damaged: {first_fault(error)}")


def check_commit(checkpoint: Path) -> Fault | None:
    """What is wrong with a checkpoint, as far as COMMIT.json, the names of its files and their
    sizes tell; None if nothing is."""
    commit = read_commit(checkpoint)
    return commit if isinstance(commit, Fault) else _check_files(checkpoint, commit)


def corrupt_file(checkpoint: Path, part: int = 0, parts: int = 1) -> Fault | None:
    """What is wrong with the first of this part of a committed checkpoint's files whose bytes are
    others than were committed; None if none is."""
    commit = read_commit(checkpoint)
    if isinstance(commit, Fault):
        return commit
    names = sorted(commit.files)[part::parts]
    with ThreadPoolExecutor(_READERS) as pool:
        faults = pool.map(lambda name: _corrupt(checkpoint, name, commit), names)
        return next((fault for fault in faults if fault), None)


def committed(checkpoint: Path) -> Commit:
    """What a checkpoint's COMMIT.json says. Raises `UserError` where `check_commit` finds
    anything wrong with it."""
    commit = read_commit(checkpoint)
    fault = commit if isinstance(commit, Fault) else _check_files(checkpoint, commit)
    if fault is not None or isinstance(commit, Fault):
        raise UserError(f"{checkpoint}: {fault}; {REMEDY}")
    return commit


def committed_file(checkpoint: Path, name: str) -> Path:
    """The path of one of a checkpoint's files, whose every byte was compared with what was
    committed. Raises `UserError` for one that is not listed or is not as it was committed."""
    return next(committed_files(checkpoint, [name]))


def committed_files(checkpoint: Path, names: Iterable[str]) -> Iterator[Path]:
    """As `committed_file`, for one file after the other."""
    commit = committed(checkpoint)
    for name in names:
        if name not in commit.files:
            raise UserError(f"{checkpoint}: has no file {name}; {REMEDY}")
        if fault := _corrupt(checkpoint, name, commit):
            raise UserError(f"{checkpoint}: {fault}; {REMEDY}")
        yield checkpoint / name


def written_files(folder: Path) -> list[str]:
    """The names of all files in the folder and below, as COMMIT.json has them, sorted."""
    paths = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def digest(folder: Path, names: Iterable[str]) -> Files:
    """Flush these files to disk; their facts for COMMIT.json."""
    files = {}
    for name in names:
        flush(folder / name)
        size = (folder / name).stat().st_size
        files[name] = FileFacts(bytes=size, sha256=file_sha256(folder / name, MOVED.add))
    return files


def commit_folder(
    temporary: Path,
    final: Path,
    step: int,
    world_size: int,
    files: Files,
    named: Callable[[], None] = nothing,
) -> None:
    """Write COMMIT.json and give the folder its name, on disk when this returns: the names of the
    files in it, its own, and their bytes. `named` is called just before it gets its name."""
    facts = Commit(format=FORMAT, step=step, world_size=world_size, files=files)
    write_atomic(temporary / COMMIT, facts.model_dump_json(indent=1))
    for folder in {(temporary / name).parent for name in files} - {temporary}:
        flush(folder)
    flush(temporary)
    named()
    temporary.rename(final)
    flush(final.parent)


def _check_files(checkpoint: Path, commit: Commit) -> Fault | None:
    """What the names of a checkpoint's files and their sizes tell is wrong."""
    for name, facts in commit.files.items():
        size = _size(checkpoint / name)
        if size != facts.bytes:
            has = "missing" if size < 0 else f"{size} bytes"
            return _damaged(f"{name}: {has}, expected {facts.bytes}")
    if unlisted := sorted({*written_files(checkpoint)} - {*commit.files, COMMIT}):
        told = f"{unlisted[0]}: is not one of the files that {COMMIT} lists; move it elsewhere"
        return Fault(Condition.UNLISTED, told)
    return None


def _size(file: Path) -> int:
    """Bytes of a regular file; -1 where there is none, as another process may remove it."""
    try:
        found = file.stat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _corrupt(checkpoint: Path, name: str, commit: Commit) -> Fault | None:
    try:
        found = file_sha256(checkpoint / name, MOVED.add)
    except OSError as error:
        return _damaged(f"{name}: cannot be read ({error.strerror})")
    same = found == commit.files[name].sha256
    return None if same else _damaged(f"{name}: digest differs")


def _damaged(told: str) -> Fault:
    return Fault(Condition.DAMAGED, told)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
