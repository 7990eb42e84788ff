"""What an edit of a head begins with: a whole checkpoint, and the names of its classes."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.dataset.names import Names, name_lines
from manyfaces.train.checkpoint.choice import chosen
from manyfaces.train.checkpoint.commit import COMMIT, committed, committed_files
from manyfaces.train.checkpoint.fetched import fetched
from manyfaces.train.checkpoint.head_files import HeadFiles, Ints, refuse_without_head
from manyfaces.train.checkpoint.layout import HEAD
from manyfaces.train.checkpoint.state import RunState


@dataclass(frozen=True)
class Source:
    """A checkpoint all of whose bytes are as committed."""

    path: Path
    state: RunState
    head: HeadFiles
    names: Names
    named: bool
    """Whether it has an `identities.txt`; else classes go by number."""


def open_source(where: Path) -> Source:
    """Open a checkpoint, or one of a run as `chosen` does.

    Raises `UserError` for one that is not whole or has no class centres, and for names that do not
    tell its classes apart.
    """
    where = fetched(where)
    path = where if (where / COMMIT).is_file() else chosen(where)
    files = committed(path).files
    for _ in committed_files(path, [name for name in files if not name.startswith(f"{HEAD}/")]):
        pass
    state, file = RunState.read(path), path / IDENTITIES
    refuse_without_head(state.config, path)
    head = HeadFiles(path, state.num_classes)
    named = IDENTITIES in files
    names = Names.parse(file.read_bytes()) if named else Names.numbers(head.num_classes)
    if len(names) != head.num_classes:
        raise UserError(
            f"{file}: {len(names):,} names of {head.num_classes:,} classes; give another checkpoint"
        )
    if twice := names.twice():
        raise UserError(
            f"{file}: {twice!r} is the name of two classes; rename one in the dataset, and save "
            "another checkpoint"
        )
    return Source(path, state, head, names, named)


def names_of(dataset: Dataset) -> tuple[Names, bool]:
    """Names of the dataset's classes, and whether it has any but their numbers. Raises `UserError`
    for a name of two classes."""
    body = io.BytesIO()
    body.writelines(name_lines(dataset))
    names = Names.parse(body.getvalue())
    if not len(names):
        return Names.numbers(dataset.manifest.num_identities), False
    if twice := names.twice():
        raise UserError(
            f"{dataset.where}/{IDENTITIES}: {twice!r} is the name of two identities; rename one"
        )
    return names, True


def find(names: Names, wanted: Names, where: str) -> Ints:
    """The number of each wanted name. Raises `UserError` for one that is not there or wanted
    twice."""
    if twice := wanted.twice():
        raise UserError(f"{twice!r} is given twice; give each name once")
    found = names.find(wanted)
    if len(missing := np.flatnonzero(found < 0)):
        name = wanted[int(missing[0])]
        near = names.nearest(name)
        more = f" (nor {len(missing) - 1:,} more of those given)" if len(missing) > 1 else ""
        hint = f"nearest: {', '.join(near)}" if near else "none is spelt like it"
        raise UserError(f"{where}: no identity {name!r}{more}; {hint}")
    return found


def where_named(where: object, named: bool) -> str:
    """Where names were looked for, for people; says so where classes go by number."""
    return str(where) if named else f"{where} (no {IDENTITIES} in it: classes go by number)"
