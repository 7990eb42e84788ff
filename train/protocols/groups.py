"""Protocol groups: verification told apart by groups of people, with one threshold for all."""

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.data.sources.group_table import GroupTable, read_groups
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.groups import NO_GROUP, group_figures, group_quantities
from manyfaces.train.evaluation.result import Encoded, Result
from manyfaces.train.protocols.pair_sets import PairSet, open_pairs
from manyfaces.train.protocols.protocol import Protocol, image_keys


class Joined(Sequence[Encoded]):
    """Several sequences behind one another; an image is taken when it is asked for."""

    def __init__(self, parts: Sequence[Sequence[Encoded]]) -> None:
        self._parts = parts
        self._starts = [0, *np.cumsum([len(part) for part in parts]).tolist()]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "list[Encoded]": ...
    def __getitem__(self, index: int | slice) -> "Encoded | list[Encoded]":
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        part = bisect_right(self._starts, index) - 1
        image: Encoded = self._parts[part][index - int(self._starts[part])]
        return image


class Groups(Protocol):
    """Sets of pairs with groups. Raises `UserError` as `open_pairs` and `read_groups` do, for a
    table of other images than those of the sets, and for fewer than two groups."""

    def __init__(
        self,
        paths: Sequence[str],
        root: str | None = None,
        groups: str | None = None,
        column: str | None = None,
        fmr: float = 1e-3,
        flip: Flip = "sum",
        interleave: bool = False,
    ) -> None:
        self.sets = [
            open_pairs(path, None if Path(path).suffix == ".bin" else root, interleave=interleave)
            for path in paths
        ]
        self.fmr, self.flip, self.quantities = fmr, flip, group_quantities(fmr)
        self.same_N = np.concatenate([each.same_N for each in self.sets])
        if groups is None:
            stems = [Path(path).stem for path in paths]
            found = [stem for each, stem in zip(self.sets, stems, strict=True) for _ in each.same_N]
        else:
            table = read_groups(Path(groups), column)
            found = [group for each in self.sets for group in _groups_of(each, table, groups, root)]
        self.groups = sorted({group for group in found if group})
        if len(self.groups) < 2:
            told = ", ".join(self.groups) or "none"
            raise UserError(
                f"{groups or paths[0]}: the pairs are of one group or none ({told}); give two at "
                "least"
            )
        number = {group: place for place, group in enumerate(self.groups)}
        self.group_N = np.array([number.get(group, NO_GROUP) for group in found])

    def images(self) -> Sequence[Encoded]:
        return Joined([each.images for each in self.sets])

    def keys(self) -> Sequence[Hashable]:
        return [
            key
            for each in self.sets
            for key in (each.keys if each.keys is not None else image_keys(each.images))
        ]

    def image_name(self, index: int) -> str:
        for each in self.sets:
            if index < len(each.images):
                return f"{each.where}: {each.names[index]}"
            index -= len(each.images)
        raise IndexError(index)

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        figures = group_figures(
            self.name,
            metrics.cosine_scores(embeddings_ND),
            self.same_N,
            self.group_N,
            self.groups,
            self.fmr,
            self._identities(),
        )
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars=figures.scalars,
            counts={
                "pairs": len(self.same_N),
                "groups": len(self.groups),
                "pairs of no group": int((self.group_N == NO_GROUP).sum()),
            },
            intervals=figures.intervals,
            curves=figures.curves,
            tables={"groups": figures.table},
        )

    def _identities(self) -> NDArray[np.int64] | None:
        """The identities of both images of each pair as numbers, [N, 2], where all are known."""
        names = [name for each in self.sets for name in each.identities or ()]
        if len(names) < 2 * len(self.same_N):
            return None
        numbers = np.unique(np.array(names), return_inverse=True)[1]
        return numbers.reshape(-1, 2).astype(np.int64)


def _groups_of(pairs: PairSet, table: GroupTable, path: str, root: str | None) -> list[str]:
    """The group of each pair: that of both of its images; "" where they are of two, or one is of
    none. Raises `UserError` where the table knows none of the images."""
    if table.of == "identity" and pairs.identities is None:
        raise UserError(
            f"{path}: tells of identities, and {pairs.where} does not name them; give a table of "
            "images, or a list in the form of LFW's pairs.txt"
        )
    if table.of == "identity":
        keys = list(pairs.identities or ())
        known = dict(table.group)
    else:
        keys = list(pairs.names)
        base = Path(root) if root is not None else Path(pairs.where).parent
        is_list = pairs.keys is not None
        known = {
            str(base / key) if is_list else f"image {key}": group
            for key, group in table.group.items()
        }
    found = [known.get(key, "") for key in keys]
    if not any(found):
        raise UserError(
            f"{path}: knows none of the {'identities' if table.of == 'identity' else 'images'} of "
            f"{pairs.where}; expected {keys[0]!r}, for example"
        )
    return [a if a == b else "" for a, b in zip(found[0::2], found[1::2], strict=True)]
