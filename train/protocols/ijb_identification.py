"""The 1:N task of IJB: probes of which each is in one of two galleries, searched for in both.

In a gallery, a probe is *mated* where its subject is in it, and else one of an unknown person: so
both closed and open search are measured. Shapes: K templates, D the embedding, E probes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.data.sources.ijb import Enrolled
from manyfaces.train.evaluation.identification import (
    OpenSet,
    first_hits,
    open_set_by_element,
    trade_off,
)
from manyfaces.train.evaluation.nearest import exact_search
from manyfaces.train.evaluation.result import Curve, Quantity, Table
from manyfaces.train.protocols.figures import Figures

_RANKS, _FPIRS = (1, 5, 10), (1e-2, 1e-1)
_CMC_RANKS = 20


class _Search(NamedTuple):
    """The probes in one gallery."""

    first_E: NDArray[np.int64]
    """Rank of the probe's subject, 0 beyond the ranks that are looked at."""
    best_E: NDArray[np.float32]
    """Score of the first entry."""
    mated_E: NDArray[np.bool_]


def _tpir(fpir: float) -> Quantity:
    word = f"{fpir:.0e}".replace("e-0", "e-")
    return Quantity(f"tpir_at_fpir_{fpir:.0e}", f"TPIR at FPIR {word}", f"TPIR {word}")


class TemplateIdentification:
    """Rank-k over both galleries, and TPIR at FPIR as the mean of both.

    Rank-k is the share of all probes that are found in their own gallery. A mated probe counts for
    TPIR only if its first entry is right and scores above the threshold, as InsightFace's
    `ijb_evals.py` has it; figures of its `ijb_1n.py`, with one closed gallery, are no comparison.
    """

    quantities: Sequence[Quantity] = (
        *(Quantity(f"rank{rank}", f"rank-{rank}", f"rank-{rank}") for rank in _RANKS),
        *map(_tpir, _FPIRS),
    )

    def __init__(self, galleries: Mapping[str, Enrolled], probes: Enrolled) -> None:
        self.galleries, self.probes = galleries, probes

    def figures(self, name: str, unit_KD: NDArray[np.floating]) -> Figures:
        """The figures for these templates, under the name of the result."""
        searches = {
            gallery: self._search(unit_KD, entries) for gallery, entries in self.galleries.items()
        }
        shares = [
            sum(
                int(((each.first_E > 0) & (each.first_E <= rank)).sum())
                for each in searches.values()
            )
            / len(self.probes.template_E)
            for rank in range(1, _CMC_RANKS + 1)
        ]
        scalars: dict[str, float | None] = {f"rank{rank}": shares[rank - 1] for rank in _RANKS}
        rows: dict[str, dict[str, float | None]] = {}
        for fpir in _FPIRS:
            told = {
                gallery: open_set_by_element(each.best_E, each.first_E, each.mated_E, fpir)
                for gallery, each in searches.items()
            }
            scalars[_tpir(fpir).name] = _mean_tpir(list(told.values()))
            for gallery, each in told.items():
                rows[f"FPIR {fpir:.0e}, gallery {gallery}"] = {
                    field: getattr(each, field, None) for field in ("tpir", "fpir", "threshold")
                }
        counts = {"probes": len(self.probes.template_E)}
        for gallery, entries in self.galleries.items():
            counts[f"gallery_{gallery}"] = len(entries.template_E)
            counts[f"mated_{gallery}"] = int(searches[gallery].mated_E.sum())
        table: Table = rows
        return Figures(
            scalars, counts, curves=_curves(name, shares, searches), tables={"open_set": table}
        )

    def _search(self, unit_KD: NDArray[np.floating], entries: Enrolled) -> _Search:
        vectors_ED = unit_KD[self.probes.template_E].astype(np.float32)
        gallery_ND = unit_KD[entries.template_E].astype(np.float32)
        found = exact_search(vectors_ED, [gallery_ND], min(_CMC_RANKS, len(gallery_ND)))
        subject_E, subject_N = (each.subject_E.astype(np.int64) for each in (self.probes, entries))
        mated_E = np.isin(subject_E, subject_N)
        return _Search(first_hits(found, subject_E, subject_N), found.scores_QK[:, 0], mated_E)


def _mean_tpir(told: Sequence[OpenSet | None]) -> float | None:
    """The mean over the galleries; None where one of them cannot tell."""
    known = [each.tpir for each in told if each is not None]
    return float(np.mean(known)) if len(known) == len(told) else None


def _curves(
    name: str, shares: Sequence[float], searches: Mapping[str, _Search]
) -> Mapping[str, Curve]:
    ranks = np.arange(1, len(shares) + 1, dtype=np.float64)
    curves = {
        "cmc": Curve(f"{name}: probes found", "rank", "probes found", ranks, np.array(shares))
    }
    lines = {
        f"gallery {gallery}": trade_off(each.best_E, each.first_E, each.mated_E)
        for gallery, each in searches.items()
        if each.mated_E.any() and not each.mated_E.all()
    }
    if lines:
        (_, first), *_ = lines.items()
        curves["tpir"] = Curve(
            f"{name}: open set",
            "FPIR",
            "TPIR",
            first.fpir,
            first.tpir,
            log_x=True,
            lines={gallery: (line.fpir, line.tpir) for gallery, line in lines.items()},
        )
    return curves
