"""Identities come and go: the head of a committed checkpoint, edited by name into another committed
checkpoint.

Rows move with all that is kept of them; backbone, optimiser and position stay. Tensors go through
memory a part of one at a time; what is held besides is the names and, where added rows are means of
embeddings, those rows in float32. Shapes: C classes, n some of them, k the added ones.
"""

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.dataset.index import write_atomic
from manyfaces.data.dataset.mixture import AnyDataset
from manyfaces.data.dataset.names import Names, name_lines
from manyfaces.data.dataset.write import IDENTITIES
from manyfaces.train.checkpoint.checkpoint import (
    COMMIT,
    FREE_SPACE_FACTOR,
    HEAD,
    STATE,
    check_commit,
    chosen,
    commit,
    digest,
    read_state,
    rot,
)
from manyfaces.train.checkpoint.head_files import BARRED, HeadFiles, Ints, lengths, write_head
from manyfaces.train.curation.newcomers import Newcomers, class_means

GONE = np.iinfo(np.int64).min
"""In place of a row's number: the class is forgotten, all it has is zero."""
_RUN_FILE = "run.json"  # as in run.py, which would import DeepSpeed
_UNNAMED = (
    "nothing says who is who; put one beside the dataset's index: the next checkpoint of a run on "
    "it has it too"
)

Counts = dict[str, int]
Added = Callable[[str, Ints], Tensor]
"""Tensor name and consecutive numbers of added classes to what stands there for them."""


@dataclass(frozen=True)
class Source:
    """A checkpoint all of whose bytes are as committed."""

    path: Path
    state: dict[str, Any]
    head: HeadFiles
    names: Names
    named: bool
    """Whether it has an `identities.txt`; else classes go by number."""


def open_source(where: Path) -> Source:
    """RUN or a checkpoint. Raises `UserError` for one that is not whole, and for names that do not
    tell its classes apart."""
    path = where if (where / COMMIT).is_file() else chosen(where)
    if fault := check_commit(path):
        raise UserError(f"{path}: {fault}; restore it, or give another checkpoint")
    count = len(json.loads((path / COMMIT).read_text())["files"])
    for part in track(range(count), f"comparing the bytes of {path.name}", disable=count < BARRED):
        if fault := rot(path, part, count):
            raise UserError(f"{path}: {fault}; restore it, or give another checkpoint")
    state, file = read_state(path), path / IDENTITIES
    head = HeadFiles(path, state["num_classes"])
    names = Names.parse(file.read_bytes()) if file.is_file() else Names.numbers(head.num_classes)
    if len(names) != head.num_classes:
        raise UserError(
            f"{file}: {len(names):,} names of {head.num_classes:,} classes; give another checkpoint"
        )
    if twice := names.twice():
        raise UserError(
            f"{file}: {twice!r} is the name of two classes; rename one in the dataset, and save "
            "another checkpoint"
        )
    return Source(path, state, head, names, file.is_file())


def names_of(dataset: AnyDataset) -> tuple[Names, bool]:
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


def remove(where: Path, out: Path, wanted: Names) -> Counts:
    """Without these identities; the others keep their order. Raises `UserError`."""
    source = _begin(where, out)
    gone = find(source.names, wanted, _told(source.path, source.named))
    row_C = np.setdiff1d(np.arange(source.head.num_classes), gone)
    if not len(row_C):
        raise UserError(
            f"{source.path}: nothing would be left, all {len(gone):,} identities are to be "
            "removed; name fewer"
        )
    counts = {"kept": len(row_C), "removed": len(gone)}
    _write(source, out, source.names.take(row_C), row_C, _none, "remove", counts)
    return counts


def add(where: Path, out: Path, wanted: Names, dataset: AnyDataset | None) -> Counts:
    """With these identities behind the others: means of their images in the dataset, without one
    fresh rows. Raises `UserError`."""
    source = _begin(where, out)
    there = np.flatnonzero(source.names.find(wanted) >= 0)
    if len(there):
        more = f" (and {len(there) - 1:,} more of those given)" if len(there) > 1 else ""
        raise UserError(
            f"{source.path}: {wanted[int(there[0])]!r} is one of its identities already{more}; "
            "give only new names"
        )
    if twice := wanted.twice():
        raise UserError(f"{twice!r} is given twice; give each name once")
    counts, means_kD = {"kept": source.head.num_classes, "added": len(wanted)}, None
    if dataset is not None:
        names, named = names_of(dataset)
        classes_k = find(names, wanted, _told(dataset.where, named))
        if len(forgotten := np.intersect1d(classes_k, read_forgotten(dataset).identities)):
            name = wanted[int(np.flatnonzero(classes_k == forgotten[0])[0])]
            raise UserError(
                f"{dataset.where}: {name!r} is forgotten ({len(forgotten):,} of those given); "
                "leave them out"
            )
        means_kD = _means(source, dataset, classes_k, counts)
    row_C = np.append(np.arange(source.head.num_classes), -1 - np.arange(len(wanted)))
    _write(
        source,
        out,
        source.names + wanted,
        row_C,
        Newcomers.of(source.path, source.state, source.head, means_kD),
        "add",
        counts,
    )
    return counts


def remap(
    where: Path, out: Path, dataset: AnyDataset, fresh: bool, part: str | None = None
) -> Counts:
    """The head for the dataset: its classes in its order, by name; those that the head lacks start
    as added ones do. Raises `UserError`.

    With `part` the head's dataset is the part of this name in the mixture `dataset`, or the other
    way round where `dataset` is no mixture.
    """
    source = _begin(where, out)
    names, named = names_of(dataset)
    if named != source.named:
        has, lacks = (dataset.where, source.path) if named else (source.path, dataset.where)
        raise UserError(f"{lacks}: no {IDENTITIES} in it, and {has} has one: {_UNNAMED}")
    here, there = source.names, names
    if part is not None:
        if not named:
            raise UserError(
                f"{source.path}: no {IDENTITIES} in it, nor in {dataset.where}: without names "
                f"--part {part} says nothing"
            )
        here, there = (
            (here.after(f"{part}/"), there)
            if len(dataset.parts) > 1
            else (here, there.after(f"{part}/"))
        )
    row_C = here.find(there)
    forgotten = read_forgotten(dataset).identities
    if not (row_C >= 0).any():
        hint = (
            "where one of them is a part of the other, name it with --part"
            if part is None
            else "give --part as those names begin"
        )
        raise UserError(
            f"{source.path}: no identity of {dataset.where} is in it ({there[0]!r} there, "
            f"{here[0]!r} here); {hint}"
        )
    dropped = source.head.num_classes - int((row_C >= 0).sum())
    row_C[
        (row_C >= 0) & _blank(source.head)[row_C]
    ] = -1  # it was forgotten there, and a row of zeros never moves again
    row_C[forgotten] = GONE
    new_k = np.flatnonzero(row_C == -1)
    row_C[new_k] = -1 - np.arange(len(new_k))
    counts = {"kept": int((row_C >= 0).sum()), "added": len(new_k), "dropped": dropped}
    counts |= {"forgotten": len(forgotten)} if len(forgotten) else {}
    means_kD = _means(source, dataset, new_k, counts) if len(new_k) and not fresh else None
    _write(
        source,
        out,
        names,
        row_C,
        Newcomers.of(source.path, source.state, source.head, means_kD),
        "remap",
        counts,
    )
    return counts


def merge(where: Path, other_where: Path, out: Path) -> Counts:
    """With the classes of the other checkpoint behind the others, their rows as they are; of a name
    that both have, the first's stays.

    Raises `UserError`.
    """
    source, other = _begin(where, out), open_source(other_where)
    if bare := next((s.path for s in (source, other) if not s.named), None):
        raise UserError(f"{bare}: no {IDENTITIES} in it: {_UNNAMED}")
    mine, theirs = source.head.like, other.head.like
    if mine["rows"].shape != theirs["rows"].shape:
        dims = (
            f"{mine['rows'].shape[1]} dimensions, those of {other.path} {theirs['rows'].shape[1]}"
        )
        raise UserError(
            f"{source.path}: its rows have {dims}; only heads of one embedding_dim can be merged"
        )
    kinds, other_kinds = (
        {name: (none.dtype, none.shape) for name, none in head.items()} for head in (mine, theirs)
    )
    if kinds != other_kinds:
        told = " and ".join(
            ", ".join(f"{name} in {dtype}" for name, (dtype, _) in k.items())
            for k in (kinds, other_kinds)
        )
        raise UserError(
            f"{other.path}: its rows are kept in another way ({told.replace('torch.', '')}); the "
            "same head.rows is needed"
        )
    place_k = source.names.find(other.names)
    appended_k = np.flatnonzero(place_k < 0)
    if not len(appended_k):
        raise UserError(
            f"{other.path}: all its {len(other.names):,} identities are in {source.path} already; "
            "there is nothing to append"
        )
    # Who is forgotten in the one has the other's row.
    filled_k = np.flatnonzero((place_k >= 0) & _blank(source.head)[place_k] & ~_blank(other.head))
    row_C = np.append(np.arange(source.head.num_classes), -1 - np.arange(len(appended_k)))
    row_C[place_k[filled_k]] = -1 - len(appended_k) - np.arange(len(filled_k))
    taken_k = np.append(appended_k, filled_k)
    counts = {
        "kept": source.head.num_classes,
        "appended": len(appended_k),
        "in both": len(other.names) - len(appended_k),
    }
    names = source.names + other.names.take(appended_k)
    _write(
        source,
        out,
        names,
        row_C,
        lambda name, numbers_n: other.head.take(name, taken_k[numbers_n]),
        "merge",
        counts,
    )
    return counts


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
        raise UserError(
            f"{where}: no identity {name!r}{more}; "
            + (f"nearest: {', '.join(near)}" if near else "none is spelt like it")
        )
    return found


def _begin(where: Path, out: Path) -> Source:
    """What can be known to fail before much is read comes first."""
    if out.exists():
        raise UserError(f"{out}: is there already; give a folder that does not exist yet")
    if (out.parent.parent / _RUN_FILE).exists():
        raise UserError(
            f"{out}: that run would resume from it; give a folder of no run, such as "
            f"edited/checkpoints/{out.name}"
        )
    return open_source(where)


def _blank(head: HeadFiles) -> NDArray[np.bool_]:
    """Of each class, whether its row is nothing but zeros."""
    return (lengths(head) == 0).numpy()


def _means(source: Source, dataset: AnyDataset, classes_k: Ints, counts: Counts) -> Tensor | None:
    """None for a run without a loss by classes, whose rows are nothing but their number."""
    if source.head.like["rows"].shape[1] != source.state["config"]["model"]["embedding_dim"]:
        return None
    return class_means(source.path, dataset, classes_k, counts)


def _told(where: object, named: bool) -> str:
    return str(where) if named else f"{where} (no {IDENTITIES} in it: classes go by number)"


def _none(name: str, numbers_n: Ints) -> Tensor:
    raise AssertionError("nothing is added")


def _write(
    source: Source, out: Path, names: Names, row_C: Ints, added: Added, verb: str, counts: Counts
) -> None:
    """The checkpoint with these rows of the source's head in this order (`-1 - number` is an added
    one), whole or not at all."""
    like = source.head.like

    def rows(name: str, classes_n: Ints) -> Tensor:
        row_n = row_C[classes_n]
        taken = like[name].new_zeros(len(row_n), *like[name].shape[1:])
        if len(old := np.flatnonzero(row_n >= 0)):
            taken[torch.from_numpy(old)] = source.head.take(name, row_n[old])
        if len(new := np.flatnonzero((row_n < 0) & (row_n != GONE))):
            taken[torch.from_numpy(new)] = added(name, -1 - row_n[new])
        return taken

    files = json.loads((source.path / COMMIT).read_text())["files"]
    counts |= {} if source.named else {"named by number": source.head.num_classes}
    as_they_are = [
        name
        for name in files
        if not name.startswith(f"{HEAD}/") and name not in (STATE, IDENTITIES)
    ]
    row_bytes = sum(none.element_size() * int(np.prod(none.shape[1:])) for none in like.values())
    needed = (
        row_bytes * len(row_C) + sum(files[name]["bytes"] for name in as_they_are)
    ) * FREE_SPACE_FACTOR
    out.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(out.parent).free) < needed:
        raise UserError(
            f"{out}: needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB free; free some space"
        )
    temporary = out.with_name(f"{out.name}.tmp-{os.urandom(4).hex()}")
    temporary.mkdir()
    try:
        for name in as_they_are:
            shutil.copyfile(source.path / name, temporary / name)
        write_head(temporary / HEAD, like, len(row_C), rows)
        (temporary / IDENTITIES).write_bytes(names.body())
        edited = {"verb": verb, "source": str(source.path.absolute()), "counts": counts}
        edited |= {"before": source.state["edited"]} if "edited" in source.state else {}
        state = {**source.state, "num_classes": len(row_C), "edited": edited}
        write_atomic(temporary / STATE, json.dumps(state, indent=1))
        names_written = sorted(
            path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()
        )
        commit(temporary, out, source.state["step"], 1, digest(temporary, names_written))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
