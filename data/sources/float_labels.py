"""Labels that went through a float32, as in MXNet records: they are exact up to 2^24, rounded
beyond, and can be recovered in some cases.

The key ranges of InsightFace's identity records are rounded too, from 16.7 million images on
(Glint360K). They are not needed while the labels are exact. Labels that are not are recovered from
the ranges and the images' positions where these leave one answer, or taken from im2rec's `.lst`;
else they are refused: a wrong label would never be noticed.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError

FLOAT = np.float32
Ints = NDArray[np.int64]


def as_stored(numbers: NDArray[Any]) -> NDArray[np.floating]:
    """Round the numbers as a record does that holds them."""
    return numbers.astype(FLOAT)


def exact_labels(
    path: Path, key_N: Ints, rounded_N: NDArray[np.float64], first_K: NDArray[np.float64]
) -> tuple[Ints, list[str]]:
    """Find the labels of the images with these keys; returns them and notes for people.

    `rounded_N` are the labels and `first_K` the first keys of the identities (empty: im2rec) as the
    file holds them. Raises `UserError` naming the key where the label is open.
    """
    limit = 2 ** (np.finfo(FLOAT).nmant + 1)
    if rounded_N.max() < limit:
        label_N = rounded_N.astype(np.int64)
        return label_N, _notes_on_ranges(path, key_N, label_N, first_K, limit)
    if len(first_K):
        label_N = _labels_from_positions(path, key_N, rounded_N, first_K, limit)
        how = "recovered from the images' positions"
    else:
        lst = path.with_suffix(".lst")
        if not lst.is_file():
            key = int(key_N[np.argmax(rounded_N >= limit)])
            raise UserError(
                f"{path}: key {key}: label {rounded_N.max():.0f} is beyond {limit:,}, which a "
                f"float32 cannot hold; put {lst.name} beside it"
            )
        label_N, how = _labels_from_lst(lst, key_N), f"taken from {lst.name}"
    return label_N, [f"{path}: labels beyond {limit:,}, which a float32 cannot hold, were {how}"]


def _notes_on_ranges(
    path: Path, key_N: Ints, label_N: Ints, first_K: NDArray[np.float64], limit: int
) -> list[str]:
    """What a person should know about identity ranges that were not used, as the labels are
    exact."""
    used, at = np.unique(label_N, return_index=True)
    ranged = used < len(first_K)
    if (other := as_stored(key_N[at])[ranged] != first_K[used[ranged]]).any():
        return [
            f"{path}: {other.sum():,} identity records have other ranges than the images' labels, "
            "which were used"
        ]
    if len(first_K) and first_K.max() >= limit:
        return [
            f"{path}: identity ranges beyond {limit:,}, where a float32 is not exact, were not "
            "used: the images' labels are exact"
        ]
    return []


def _labels_from_positions(
    path: Path,
    key_N: Ints,
    rounded_N: NDArray[np.float64],
    first_K: NDArray[np.float64],
    limit: int,
) -> Ints:
    """Recover the labels. Raises `UserError` naming the key where positions leave a label open."""
    remedy = "convert from the folder, list or .lst that it was made of"
    if (np.diff(rounded_N) < 0).any() or len(key_N) != key_N[-1]:
        key = int(key_N[np.argmax(rounded_N >= limit)])
        raise UserError(
            f"{path}: key {key}: its label is beyond {limit:,}, which a float32 cannot hold, and "
            f"images are not in order; {remedy}"
        )
    lowest, highest = first_images(rounded_N, first_K)
    open_K = np.flatnonzero(lowest != highest)
    if len(open_K) or lowest[0] != 0:
        record = int(key_N[-1]) + 1 + (int(open_K[0]) if len(open_K) else 0)
        raise UserError(
            f"{path}: key {record}: a float32 cannot hold this identity's range, and its images' "
            f"labels leave it open; {remedy}"
        )
    return np.repeat(np.arange(len(first_K)), np.diff(np.append(lowest, len(key_N))))


def first_images(rounded_N: NDArray[np.float64], first_K: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Bound the position of each identity's first image, given all images' rounded labels and all
    rounded first keys; returns the lowest and the highest that it can have.

    Positions count from 0 and keys from 1; identities are in order and each has an image. Where no
    position fits, lowest > highest.
    """
    label_K = np.arange(len(first_K))
    # Identities whose labels round to the same float share the images that have it.
    group_K = as_stored(label_K)
    begin_K, end_K = (
        np.searchsorted(rounded_N, group_K.astype(np.float64), side) for side in ("left", "right")
    )
    # A first key lies between the middles of its float's gaps to the next lower and higher float.
    nearest_K = as_stored(first_K)
    lower_K, upper_K = (np.nextafter(nearest_K, FLOAT(to)).astype(np.float64) for to in (0, np.inf))
    lowest, highest = np.ceil((lower_K + first_K) / 2), np.floor((first_K + upper_K) / 2)
    lowest += as_stored(lowest) != nearest_K  # a middle rounds to the even float
    highest -= as_stored(highest) != nearest_K
    opens_K = np.append(True, group_K[1:] != group_K[:-1])
    lowest = np.maximum(lowest.astype(np.int64) - 1, begin_K)
    highest = np.where(opens_K, begin_K, np.minimum(highest.astype(np.int64) - 1, end_K - 1))
    # Each identity has an image, so that first images are at least one apart.
    lowest = np.maximum.accumulate(lowest - label_K) + label_K
    highest = np.minimum.accumulate((highest - label_K)[::-1])[::-1] + label_K
    return lowest, highest


def _labels_from_lst(path: Path, key_N: Ints) -> Ints:
    """Read the labels of the keys from im2rec's list, which has lines
    `key<TAB>label[<TAB>...]<TAB>path`. Raises `UserError`."""
    found = np.full(len(key_N), -1, np.int64)
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            try:
                key, label = line.split("\t")[:2]
                row, value = int(np.searchsorted(key_N, int(key))), int(float(label))
                if value != float(label):
                    raise ValueError(label)
            except (ValueError, OverflowError) as error:
                raise UserError(
                    f"{path}:{number}: expected `key<TAB>label<TAB>path`, a whole label, "
                    f"got {line[:60]!r}"
                ) from error
            if row < len(key_N) and key_N[row] == int(key):
                if found[row] not in (-1, value):
                    raise UserError(
                        f"{path}:{number}: key {int(key)} has another label in a line above"
                    )
                found[row] = value
    if (found < 0).any():
        raise UserError(
            f"{path}: no label for key {key_N[np.argmax(found < 0)]} of the .rec beside it"
        )
    return found
