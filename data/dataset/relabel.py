"""Add edits to a dataset folder: see `edits.py`."""

import contextlib
import fcntl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.edits import DROPPED, SCHEMA, Edits, read_table, write_table
from manyfaces.data.dataset.forget import class_ids, rows_of_keys, without_suffix
from manyfaces.data.dataset.manifest import EDITS
from manyfaces.data.dataset.part import Part

_OPERANDS = {"drop": 1, "relabel": 2, "merge": 2}


@dataclass(frozen=True)
class Edit:
    """One line of a file of edits."""

    verb: str
    """drop, relabel or merge."""
    operands: tuple[str, ...]
    """The key of a sample, a key and an identity, or two identities."""
    reason: str = ""
    score: float | None = None
    where: str = ""
    """File and line, for people."""


def read_lines(file: Path) -> list[Edit]:
    """The edits in a file of lines `drop KEY`, `relabel KEY IDENTITY` and `merge IDENTITY
    IDENTITY`, tabs between, each with a reason and a score after it or none. Raises `UserError`
    naming the first line that is none of these."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    numbered = enumerate(lines, 1)
    edits = [_parse(line, f"{file}:{n}") for n, line in numbered if line.strip()]
    if not edits:
        raise UserError(f"{file}: has no edit; give lines `drop<TAB>KEY`, one an edit")
    return edits


def _parse(line: str, where: str) -> Edit:
    verb, *rest = [field.strip() for field in line.split("\t")]
    count = _OPERANDS.get(verb)
    if count is None or not count <= len(rest) <= count + 2 or not all(rest[:count]):
        raise UserError(
            f"{where}: is no edit; give `drop<TAB>KEY`, `relabel<TAB>KEY<TAB>IDENTITY` or "
            "`merge<TAB>IDENTITY<TAB>IDENTITY`, then a reason and a score if you like"
        )
    reason, score = [*rest[count:], "", ""][:2]
    try:
        number = float(score) if score else None
    except ValueError:
        raise UserError(f"{where}: the score {score} is no number") from None
    return Edit(verb, tuple(rest[:count]), reason, number, where)


def relabel(part: Part, edits: Sequence[Edit], processes: int | None = None) -> Edits:
    """Add the edits to those of the part; returns all of them. Merges come first and take along
    whatever was given to the merged identity before; then images are dropped and relabelled, an
    identity that was merged standing for the one it became.

    Raises `UserError` for keys and identities that are not there, for an image edited twice, and
    for identities merged in a circle; then nothing is changed.
    """
    if part.remote is not None and part.remote.with_index:
        raise UserError(f"{part.where}: edit a local copy of its index, and put its {EDITS} there")
    by_key = [edit for edit in edits if edit.verb != "merge"]
    rows_of = rows_of_keys(part, [edit.operands[0] for edit in by_key], processes)
    names = [edit.operands for edit in edits if edit.verb == "merge"]
    names += [edit.operands[1:] for edit in by_key]
    number = _numbers(part, (name for some in names for name in some))
    # A file of its own, as network file systems lock only what is open for writing.
    with (part.path / f".{EDITS}.lock").open("a") as lock:
        with contextlib.suppress(OSError):  # of a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        known = _known(part)
        current_N = part.indexed_identity_N.astype(np.int64)
        for row, (identity, _, _) in known.items():
            current_N[row] = identity
        became = _merge([e for e in edits if e.verb == "merge"], number, current_N, known)
        for row, edit in _edit_of_rows(by_key, rows_of).items():
            given = DROPPED if edit.verb == "drop" else int(became[number[edit.operands[1]]])
            known[row] = (given, edit.reason, edit.score)
        return _write(part, known)


_Known = dict[int, tuple[int, str, float | None]]


def _known(part: Part) -> _Known:
    """(identity, reason, score) of each row that is edited already, read anew."""
    table = read_table(part.where, part.path, part.manifest)
    if table is None:
        return {}
    columns = [table[name].to_pylist() for name in SCHEMA.names]
    return {
        row: (identity, reason or "", score)
        for row, identity, reason, score in zip(*columns, strict=True)
    }


def _merge(
    merges: Sequence[Edit],
    number: dict[str, int],
    current_N: NDArray[np.int64],
    known: _Known,
) -> dict[int, int]:
    """Move the rows of merged identities; returns what each of the identities named became."""
    became = {identity: identity for identity in number.values()}
    by_class: dict[int, Edit] = {}
    for edit in merges:
        source, target = (number[name] for name in edit.operands)
        if source in by_class:
            raise UserError(f"{edit.where}: {edit.operands[0]} is merged twice; merge it once")
        became[source], by_class[source] = target, edit
    for source, edit in by_class.items():
        target, steps = int(became[source]), 0
        while target in by_class and steps <= len(by_class):
            target, steps = int(became[target]), steps + 1
        if target in by_class:
            raise UserError(f"{edit.where}: {edit.operands[0]} is merged in a circle")
        became[source] = target
    for row in np.flatnonzero(np.isin(current_N, list(by_class))).tolist():
        edit = by_class[int(current_N[row])]
        known[row] = (int(became[current_N[row]]), edit.reason, edit.score)
    return became


def _numbers(part: Part, names: Iterable[str]) -> dict[str, int]:
    """The number of each of these identities."""
    distinct = list(dict.fromkeys(names))
    return dict(zip(distinct, class_ids(part, distinct).tolist(), strict=True)) if distinct else {}


def _edit_of_rows(edits: Iterable[Edit], rows_of: dict[str, list[int]]) -> dict[int, Edit]:
    found: dict[int, Edit] = {}
    for edit in edits:
        for row in rows_of[without_suffix(edit.operands[0])]:
            if (other := found.setdefault(row, edit)) is not edit:
                raise UserError(
                    f"{edit.where}: {edit.operands[0]} is edited by {other.where} too; edit an "
                    "image once"
                )
    return found


def _write(part: Part, known: _Known) -> Edits:
    """Write those edits that differ from the index."""
    row_n = np.array(sorted(known), np.int64)
    indexed_n = part.indexed_identity_N[row_n].astype(np.int64)
    identity_n = np.array([known[row][0] for row in row_n.tolist()], np.int64)
    changed = identity_n != indexed_n
    row_n, indexed_n, identity_n = row_n[changed], indexed_n[changed], identity_n[changed]
    told = [known[row] for row in row_n.tolist()]
    table = pa.table(
        {
            "row": pa.array(row_n),
            "identity": pa.array(identity_n),
            "reason": pa.array([reason for _, reason, _ in told], pa.string()),
            "score": pa.array([score for _, _, score in told], pa.float32()),
        }
    )
    write_table(part.path, part.manifest, table)
    return Edits(row_n, identity_n, indexed_n)
