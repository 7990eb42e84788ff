"""Protocol identification: whom of a gallery a probe shows, in a closed and in an open set.

Shapes: Q probes, K entries that are found for each, N entries of gallery and distractors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.gallery_search import Found, search_ivf
from manyfaces.train.evaluation.identification import (
    NOBODY,
    cmc,
    first_hits,
    open_set_at_or_above,
    open_set_by_element,
    trade_off,
)
from manyfaces.train.evaluation.nearest import Floats, exact_search, unit
from manyfaces.train.evaluation.result import Curve, Example, Histogram, Quantity, Result, Table
from manyfaces.train.protocols.labelled import open_distractors, open_labelled
from manyfaces.train.protocols.lists import OverLists, codes_among, shared_images

_RANKS = (1, 5, 10, 20)
_FPIRS = (1e-2, 1e-1)
_CMC_RANKS = 50
_EXAMPLES = 12
_PROBES, _GALLERY, _DISTRACTORS = 0, 1, 2
_RECALLS = (
    Quantity("recall_first", "recall of IVF, first entry", "recall 1st"),
    Quantity("recall_all", f"recall of IVF, first {_CMC_RANKS}", "recall all"),
)


def _rank_quantity(rank: int) -> Quantity:
    """The share of mated probes that are found among the first `rank` entries."""
    return Quantity(
        f"rank{rank}", f"rank-{rank}", f"rank-{rank}", unknown="no probe has a mate in the gallery"
    )


def _tpir(fpir: float) -> Quantity:
    return Quantity(f"tpir_at_fpir_{fpir:.0e}", f"TPIR at FPIR {fpir:.0e}", f"TPIR {fpir:.0e}")


@dataclass(frozen=True)
class Searched:
    """What a search came to."""

    found: Found
    first_Q: NDArray[np.int64]
    """Rank of the first hit, 0 for none."""
    mated_Q: NDArray[np.bool_]

    @property
    def best(self) -> Floats:
        """The score of the first entry."""
        return self.found.nearest.scores_QK[:, 0]


class Identification(OverLists):
    """Probes against a gallery with distractors.

    The first entries by cosine are ranked. Probes whose identity is not in the gallery are those
    without a mate, by which FPIR is told; two definitions of the threshold stand in the table
    `open_set`, and the figures are those of InsightFace's. Raises `UserError` for lists that cannot
    be read, for identities or images in lists where they must not be, and where no probe has a
    mate.
    """

    def __init__(
        self,
        gallery: str,
        probes: str,
        distractors: Sequence[str] = (),
        distractors_are_others: bool = False,
        enrol: Literal["images", "mean"] = "images",
        flip: Flip = "sum",
        search: Literal["exact", "ivf"] = "exact",
        probed_lists: int = 32,
    ) -> None:
        others = [open_distractors(path) for path in distractors]
        super().__init__([open_labelled(probes), open_labelled(gallery), *others], flip)
        self._enrol, self._probed_lists = enrol, probed_lists if search == "ivf" else None
        self._code_Q = codes_among(self.lists[_PROBES], self.lists[_GALLERY])
        self._check_lists(distractors_are_others)
        self.quantities = [
            *map(_rank_quantity, _RANKS),
            *(map(_tpir, _FPIRS) if (self._code_Q < 0).any() else ()),
            *(_RECALLS if search == "ivf" else ()),
        ]

    def _check_lists(self, distractors_are_others: bool) -> None:
        """Raise `UserError` for lists that do not go together."""
        probes, gallery, *distractors = self.lists
        if not (self._code_Q >= 0).any():
            raise UserError(
                f"{probes.where}: not one of its identities is in the gallery {gallery.where}; "
                f"identities are compared by name (probes: {probes.identities[0]!r}, gallery: "
                f"{gallery.identities[0]!r})"
            )
        if shared := shared_images(probes, gallery):
            raise UserError(
                f"{probes.where}: {len(shared):,} of its images are in the gallery too (the first: "
                f"{shared[0]}); an image finds itself: leave it out of one of them"
            )
        sought = {*gallery.identities, *probes.identities}
        for each in distractors:
            both = sorted(sought & set(each.identities))
            if both and not distractors_are_others:
                raise UserError(
                    f"{each.where}: {len(both):,} identities of the distractors are in the gallery "
                    f"or among the probes too (the first: {both[0]!r}); leave them out, or set "
                    "distractors_are_others where other people have the same label"
                )

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        self.check_widths(embeddings_ND)
        searched = self._searched(embeddings_ND)
        first_Q, mated_Q, best_Q = searched.first_Q, searched.mated_Q, searched.best
        shares = cmc(first_Q[mated_Q], range(1, _CMC_RANKS + 1))
        scalars: dict[str, float | None] = {f"rank{rank}": shares[rank - 1] for rank in _RANKS}
        tables: dict[str, Table] = {}
        if not mated_Q.all():
            tables["open_set"] = _open_set_table(searched)
            for fpir in _FPIRS:
                told = open_set_by_element(best_Q, first_Q, mated_Q, fpir)
                scalars[_tpir(fpir).name] = told and told.tpir
        if self._probed_lists is not None:
            scalars["recall_first"] = searched.found.recall_first
            scalars["recall_all"] = searched.found.recall_all
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars=scalars,
            counts=self._counts(mated_Q),
            curves=self._curves(shares, searched),
            histograms={"scores": self._histogram(searched)},
            tables=tables,
            examples=self._examples(searched),
        )

    def _searched(self, embeddings_ND: Floats) -> Searched:
        probes_QD = self.unit_rows(embeddings_ND, _PROBES)
        gallery = self.lists[_GALLERY]
        entries_ND = self.unit_rows(embeddings_ND, _GALLERY)
        label_N = gallery.code_N
        if self._enrol == "mean":
            entries_ND, label_N = _means(entries_ND, label_N)
        distractors = range(_DISTRACTORS, len(self.lists))
        num_others = sum(len(self.lists[number]) for number in distractors)

        def entries() -> Iterator[Floats]:
            yield entries_ND
            for number in distractors:
                yield from self.unit_blocks(embeddings_ND, number)

        num_rows = len(entries_ND) + num_others
        if self._probed_lists is None:
            advance = self.advance(num_rows)
            found = Found(exact_search(probes_QD, entries(), _CMC_RANKS, advance))
        else:
            advance = self.advance(3 * num_rows)
            found = search_ivf(
                probes_QD, entries, num_rows, _CMC_RANKS, self._probed_lists, advance
            )
        all_labels_N = np.concatenate([label_N, np.full(num_others, NOBODY)])
        return Searched(
            found, first_hits(found.nearest, self._code_Q, all_labels_N), self._code_Q >= 0
        )

    def _counts(self, mated_Q: NDArray[np.bool_]) -> dict[str, int]:
        counts = {"probes": len(mated_Q), "gallery": len(self.lists[_GALLERY])}
        if len(self.lists) > _DISTRACTORS:
            counts["distractors"] = sum(map(len, self.lists[_DISTRACTORS:]))
        if not mated_Q.all():
            counts["without_mate"] = int((~mated_Q).sum())
        return counts

    def _curves(self, shares: Sequence[float], searched: Searched) -> Mapping[str, Curve]:
        ranks = np.arange(1, len(shares) + 1, dtype=np.float64)
        curves = {
            "cmc": Curve(
                f"{self.name}: cumulative matches", "rank", "probes found", ranks, np.array(shares)
            )
        }
        if not searched.mated_Q.all():
            line = trade_off(searched.best, searched.first_Q, searched.mated_Q)
            curves["tpir"] = Curve(
                f"{self.name}: open set", "FPIR", "TPIR", line.fpir, line.tpir, log_x=True
            )
        return curves

    def _histogram(self, searched: Searched) -> Histogram:
        right = searched.mated_Q & (searched.first_Q == 1)
        groups = {
            "right": searched.best[right],
            "wrong": searched.best[searched.mated_Q & ~right],
            "without a mate": searched.best[~searched.mated_Q],
        }
        return Histogram(
            f"{self.name}: rank-1 {right.sum() / max(searched.mated_Q.sum(), 1):.1%}",
            "cosine of the first entry",
            "probes",
            {name: scores for name, scores in groups.items() if len(scores)},
        )

    def _examples(self, searched: Searched) -> Mapping[str, Sequence[Example]]:
        """The wrong first entries of the highest scores, where all are images."""
        if self._enrol == "mean" or any(each.read is None for each in self.lists):
            return {}
        wrong = np.flatnonzero(searched.first_Q != 1)
        wrong = wrong[np.argsort(-searched.best[wrong], kind="stable")][:_EXAMPLES]
        images = self.images()
        examples = []
        for row in wrong.tolist():
            entry = int(self._starts[_GALLERY]) + int(searched.found.nearest.rows_QK[row, 0])
            label = f"{self.image_name(row)} is not {self.image_name(entry)}"
            score = float(searched.best[row])
            examples.append(Example((images[row], images[entry]), label, score))
        return {"wrong first entries": examples} if examples else {}


def _open_set_table(searched: Searched) -> Table:
    """Both definitions at each rate, with the rate that is achieved."""
    rules: dict[str, Callable[..., object]] = {
        "element of the sorted scores": open_set_by_element,
        "at or above the threshold": open_set_at_or_above,
    }
    table: dict[str, Mapping[str, float | None]] = {}
    for fpir in _FPIRS:
        for rule, measure in rules.items():
            told = measure(searched.best, searched.first_Q, searched.mated_Q, fpir)
            fields = ("tpir", "threshold", "fpir")
            values = {name: getattr(told, name, None) for name in fields}
            table[f"FPIR {fpir:.0e}, {rule}"] = values
    return table


def _means(unit_ND: Floats, code_N: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """The mean of each identity's unit embeddings, of length 1, and its code."""
    codes, entry_N = np.unique(code_N, return_inverse=True)
    sums = np.zeros((len(codes), unit_ND.shape[1]))
    np.add.at(sums, entry_N, unit_ND)
    return unit(sums), codes
