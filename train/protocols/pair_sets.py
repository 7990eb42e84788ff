"""Sets of pairs of images, whatever file they are in.

Shapes: N pairs.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.pair_list import read_pair_list
from manyfaces.data.sources.verification_bin import read_bin
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.result import Encoded

_LISTS = (".txt", ".csv", ".tsv", ".list", ".lst")
# By chance, a fold of so many pairs in a set of so many of each kind is never of one kind.
_FOLD_THAT_TELLS, _SHARE_THAT_TELLS = 50, 0.25


class Files(Sequence[Encoded]):
    """Images in files, each read when it is asked for. Raises `UserError` for one that cannot be
    read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "Files": ...
    def __getitem__(self, index: int | slice) -> "Encoded | Files":
        if isinstance(index, slice):
            return Files(self.paths[index])
        path = self.paths[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class PairSet:
    """N pairs: images 2i and 2i + 1 are those of pair i."""

    where: str
    images: Sequence[Encoded]
    same_N: NDArray[np.bool_]
    names: Sequence[str]
    """2N, for people."""
    keys: Sequence[Hashable] | None = None
    """2N, equal for images that are the same; None where only their bytes tell."""
    identities: Sequence[str] | None = None
    """2N, where they are known."""

    def identity_numbers(self) -> NDArray[np.int64] | None:
        """The identities of both images of each pair as numbers, [N, 2]; None where they are not
        known."""
        if self.identities is None:
            return None
        numbers = np.unique(np.array(self.identities), return_inverse=True)[1]
        return numbers.reshape(-1, 2).astype(np.int64)

    def in_order(self, order_N: NDArray[np.int64]) -> "PairSet":
        """The same pairs in another order."""
        images = [image for pair in order_N.tolist() for image in (2 * pair, 2 * pair + 1)]
        files = self.images
        return replace(
            self,
            images=(
                Files([files.paths[i] for i in images])
                if isinstance(files, Files)
                else [files[i] for i in images]
            ),
            same_N=self.same_N[order_N],
            names=[self.names[i] for i in images],
            keys=None if self.keys is None else [self.keys[i] for i in images],
            identities=None if self.identities is None else [self.identities[i] for i in images],
        )


def open_pairs(path: str, root: str | None = None, *, interleave: bool = False) -> PairSet:
    """A verification set in InsightFace's layout, or a list of pairs (`.txt`, `.csv`, `.tsv`) whose
    images are below `root`, by default the folder of the list.

    `interleave` deals genuine and impostor pairs to the folds, as many of each kind to each. Raises
    `UserError` for a file that is none of both, for fewer pairs than folds, and for folds in which
    all pairs are of one kind though the set has both, where the files of all positive and of all
    negative pairs were joined.
    """
    pairs = _listed(path, root) if Path(path).suffix.lower() in _LISTS else _packed(path, root)
    if len(pairs.same_N) < metrics.FOLDS:
        raise UserError(
            f"{path}: {len(pairs.same_N)} pairs are too few pairs for {metrics.FOLDS} folds; give "
            f"{metrics.FOLDS} at least"
        )
    if interleave:
        pairs = pairs.in_order(_dealt(pairs.same_N))
    _check_folds(path, pairs.same_N)
    return pairs


def _packed(path: str, root: str | None) -> PairSet:
    if root is not None:
        raise UserError(
            f"{path}: root is {root}, and the file has its images in it; leave root out"
        )
    pairs = read_bin(path)
    names = [f"image {number}" for number in range(len(pairs.blobs))]
    return PairSet(path, pairs.blobs, pairs.same, names)


def _listed(path: str, root: str | None) -> PairSet:
    pairs = read_pair_list(Path(path), None if root is None else Path(root))
    names = [str(file) for file in pairs.paths]
    return PairSet(path, Files(pairs.paths), pairs.same, names, names, pairs.identities)


def _dealt(same_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """An order of the pairs in which each fold has its share of both kinds, both in the order in
    which they were."""
    kinds = [np.array_split(np.flatnonzero(kind), metrics.FOLDS) for kind in (same_N, ~same_N)]
    # The longer folds come first in both kinds, and so do those of the whole.
    return np.concatenate([part for fold in zip(*kinds, strict=True) for part in fold])


def _check_folds(path: str, same: NDArray[np.bool_]) -> None:
    """Raise `UserError` where pairs are not in the folds' order."""
    folds = np.array_split(same, metrics.FOLDS)
    share = same.mean()
    if len(folds[-1]) < _FOLD_THAT_TELLS or min(share, 1 - share) < _SHARE_THAT_TELLS:
        return
    for number, fold in enumerate(folds, 1):
        if fold.all() or not fold.any():
            kind = "one identity" if fold.all() else "two identities"
            raise UserError(
                f"{path}: all {len(fold)} pairs of fold {number} of {metrics.FOLDS} show {kind}; "
                "write both kinds of pair by turns, so that each tenth of the file has both, or "
                "set interleave to true"
            )
