"""Identities come and go: the head of a committed checkpoint, edited by name into another committed
checkpoint.

Rows move with all that is kept of them; backbone, optimiser and position stay. Tensors go through
memory a part of one at a time; what is held besides is the names and, where added rows are means of
embeddings, those rows in float32. Shapes: C classes, k the added ones.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.dataset.names import Names
from manyfaces.train.checkpoint.head_files import HeadFiles, Ints, lengths
from manyfaces.train.checkpoint.new_folder import refuse_out
from manyfaces.train.curation.added_rows import AddedRows
from manyfaces.train.curation.edit_source import Source, find, names_of, open_source, where_named
from manyfaces.train.curation.edit_writer import FORGOTTEN_ROW, write_edited

_UNNAMED = (
    "nothing says who is who; put one beside the dataset's index: the next checkpoint of a run on "
    "it has it too"
)

Counts = dict[str, int]


def remove(where: Path, out: Path, wanted: Names) -> Counts:
    """Write a checkpoint without these identities; the others keep their order. Raises
    `UserError` for a name that is not there."""
    source = _begin(where, out)
    gone = find(source.names, wanted, where_named(source.path, source.named))
    row_C = np.setdiff1d(np.arange(source.head.num_classes), gone)
    if not len(row_C):
        raise UserError(
            f"{source.path}: nothing would be left, all {len(gone):,} identities are to be "
            "removed; name fewer"
        )
    counts = {"kept": len(row_C), "removed": len(gone)}
    write_edited(source, out, source.names.take(row_C), row_C, _none, "remove", counts)
    return counts


def add(where: Path, out: Path, wanted: Names, dataset: Dataset | None) -> Counts:
    """Write a checkpoint with these identities behind the others. Their rows are the means of their
    images in the dataset; without a dataset they start as a fresh head's. Raises `UserError` for a
    name that is there already, and for one that the dataset does not have."""
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
        means_kD = _means(source, dataset, _classes(dataset, wanted), counts)
    row_C = np.append(np.arange(source.head.num_classes), -1 - np.arange(len(wanted)))
    added = AddedRows.of(source, means_kD)
    write_edited(source, out, source.names + wanted, row_C, added, "add", counts)
    return counts


def remap(where: Path, out: Path, dataset: Dataset, fresh: bool, part: str | None = None) -> Counts:
    """Write a checkpoint whose head is for the dataset. It has the dataset's classes in their
    order, found by name; those that the head lacks start as added ones do. Raises `UserError` where
    no identity is in both.

    With `part` the head's dataset is the part of this name in the mixture `dataset`, or the other
    way round where `dataset` is no mixture.
    """
    source = _begin(where, out)
    names, row_C = _rows_by_name(source, dataset, part)
    forgotten = read_forgotten(dataset).identities
    dropped = source.head.num_classes - int((row_C >= 0).sum())
    # A class that was forgotten in the head is all zeros: such a row would never move again.
    row_C[(row_C >= 0) & _blank(source.head)[row_C]] = -1
    row_C[forgotten] = FORGOTTEN_ROW
    new_k = np.flatnonzero(row_C == -1)
    row_C[new_k] = -1 - np.arange(len(new_k))
    counts = {"kept": int((row_C >= 0).sum()), "added": len(new_k), "dropped": dropped}
    if len(forgotten):
        counts["forgotten"] = len(forgotten)
    means_kD = None
    if len(new_k) and not fresh:
        means_kD = _means(source, dataset, new_k, counts)
    added = AddedRows.of(source, means_kD)
    write_edited(source, out, names, row_C, added, "remap", counts)
    return counts


def merge(where: Path, other_where: Path, out: Path) -> Counts:
    """Write a checkpoint with the classes of the other one behind its own, their rows as they are.
    Of a name that both have, the first's row stays. Raises `UserError` for heads of different
    tensors, and where there is nothing to append."""
    source, other = _begin(where, out), open_source(other_where)
    _refuse_unlike(source, other)
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

    def rows_of_other(name: str, numbers_n: Ints) -> Tensor:
        return other.head.take(name, taken_k[numbers_n])

    names = source.names + other.names.take(appended_k)
    write_edited(source, out, names, row_C, rows_of_other, "merge", counts)
    return counts


def _begin(where: Path, out: Path) -> Source:
    """Open the checkpoint, after what can be known to fail before much is read."""
    refuse_out(out)
    return open_source(where)


def _classes(dataset: Dataset, wanted: Names) -> Ints:
    """The dataset's classes of these names. Raises `UserError` for one that it does not have, or
    that is forgotten there."""
    names, named = names_of(dataset)
    classes_k = find(names, wanted, where_named(dataset.where, named))
    forgotten = np.intersect1d(classes_k, read_forgotten(dataset).identities)
    if len(forgotten):
        name = wanted[int(np.flatnonzero(classes_k == forgotten[0])[0])]
        raise UserError(
            f"{dataset.where}: {name!r} is forgotten ({len(forgotten):,} of those given); "
            "leave them out"
        )
    return classes_k


def _rows_by_name(source: Source, dataset: Dataset, part: str | None) -> tuple[Names, Ints]:
    """The names of the dataset's classes, and the head's row of each; -1 where the head has none.
    Raises `UserError` where it has none at all."""
    names, named = names_of(dataset)
    if named != source.named:
        has, lacks = (dataset.where, source.path) if named else (source.path, dataset.where)
        raise UserError(f"{lacks}: no {IDENTITIES} in it, and {has} has one: {_UNNAMED}")
    if part is not None and not named:
        raise UserError(
            f"{source.path}: no {IDENTITIES} in it, nor in {dataset.where}: without names "
            f"--part {part} says nothing"
        )
    here, there = source.names, names
    if part is not None and len(dataset.parts) > 1:
        here = here.after(f"{part}/")
    elif part is not None:
        there = there.after(f"{part}/")
    row_C = here.find(there)
    if not (row_C >= 0).any():
        hint = "give --part as those names begin"
        if part is None:
            hint = "where one of them is a part of the other, name it with --part"
        raise UserError(
            f"{source.path}: no identity of {dataset.where} is in it ({there[0]!r} there, "
            f"{here[0]!r} here); {hint}"
        )
    return names, row_C


def _refuse_unlike(source: Source, other: Source) -> None:
    """Raise `UserError` for two heads whose rows cannot stand in one."""
    if bare := next((each.path for each in (source, other) if not each.named), None):
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
        {name: (none.dtype, none.shape) for name, none in like.items()} for like in (mine, theirs)
    )
    if kinds != other_kinds:
        told = " and ".join(
            ", ".join(f"{name} in {dtype}" for name, (dtype, _) in each.items())
            for each in (kinds, other_kinds)
        )
        raise UserError(
            f"{other.path}: its rows are kept in another way ({told.replace('torch.', '')}); the "
            "same head.rows is needed"
        )


def _blank(head: HeadFiles) -> NDArray[np.bool_]:
    """[C]: whether the row of each class is nothing but zeros."""
    return (lengths(head) == 0).numpy()


def _means(source: Source, dataset: Dataset, classes_k: Ints, counts: Counts) -> Tensor:
    """The means of the classes' images under the source's network, [k, D]."""
    # DALI takes a second to import, which fresh rows have no use for.
    from manyfaces.train.curation.class_means import class_means

    return class_means(source.path, dataset, classes_k, counts)


def _none(name: str, numbers_n: Ints) -> Tensor:
    raise AssertionError("nothing is added")
