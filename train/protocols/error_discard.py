"""Protocol error_discard: error versus discard curves of a verification set, for each number that
is taken for the quality of an image."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation import discard, metrics
from manyfaces.train.evaluation.discard import area
from manyfaces.train.evaluation.result import Curve, Encoded, Quantity, Result
from manyfaces.train.evaluation.score_table import read_scores
from manyfaces.train.protocols.protocol import Protocol
from manyfaces.train.protocols.verification import Verification

NORM = "norm"
_THRESHOLDS = {"fixed": "fixed threshold", "anew": "threshold anew"}
"""Whether the threshold stays that of all pairs: the word in names, and for people."""
_ESTIMATES = {"fixed": discard.fixed_threshold, "anew": discard.threshold_anew}

Scores = Mapping[str, NDArray[np.floating]]


class ErrorDiscard(Protocol):
    """Error versus discard curves. Raises `UserError` for a set that `Verification` refuses, and
    for a file of scores that is none of this set."""

    def __init__(
        self,
        path: str,
        root: str | None = None,
        interleave: bool = False,
        flip: Flip = "sum",
        scores: Sequence[str] = (NORM,),
        fmrs: Sequence[float] = (1e-2, 1e-3),
        scores_file: str | None = None,
    ) -> None:
        self.set = Verification(path, root, flip, interleave)
        self.flip, self.reads_lazily = flip, self.set.reads_lazily
        self.path, self.scores, self.fmrs = path, tuple(scores), tuple(fmrs)
        self.given: Scores = {}
        if scores_file is not None:
            names = [_short(name, Path(root or Path(path).parent)) for name in self.set.pairs.names]
            self.given = read_scores(scores_file, names, scores)
        self.quantities = tuple(
            Quantity(
                _name(score, fmr, threshold),
                f"area under FNMR at FMR {fmr:.0e} by {score}, {_THRESHOLDS[threshold]}",
                f"{score} {fmr:.0e}" if threshold == "fixed" else "",
                format=".4f",
                brief_format=".4f",
                unknown="too few pairs to tell",
            )
            for fmr in self.fmrs
            for score in self.scores
            for threshold in _THRESHOLDS
        )

    def images(self) -> Sequence[Encoded]:
        return self.set.images()

    def keys(self) -> Sequence[Hashable]:
        return self.set.keys()

    def image_name(self, index: int) -> str:
        return self.set.image_name(index)

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        return self.scored_result(embeddings_ND, {})

    def scored_result(self, embeddings_ND: NDArray[np.float32], scores: Scores) -> Result:
        pairs = discard.Pairs(metrics.cosine_scores(embeddings_ND), self.set.pairs.same_N)
        norms_N = np.linalg.norm(embeddings_ND.astype(np.float64), axis=1)
        qualities = self._qualities({NORM: norms_N, **scores, **self.given})
        scalars: dict[str, float | None] = {}
        curves: dict[str, Curve] = {}
        tables: dict[str, dict[str, dict[str, float | None]]] = {
            f"fnmr_by_{score}": {f"{fraction:.0%}": {} for fraction in discard.FRACTIONS}
            for score in self.scores
        }
        for fmr, threshold in product(self.fmrs, _THRESHOLDS):
            lines: dict[str, NDArray[np.float64]] = {}
            for score, quality_N in qualities.items():
                fnmr_F = _ESTIMATES[threshold](pairs, quality_N, fmr)
                scalars[_name(score, fmr, threshold)] = None if fnmr_F is None else area(fnmr_F)
                if fnmr_F is not None:
                    lines[score] = fnmr_F
                    rows = tables[f"fnmr_by_{score}"].values()
                    for row, fnmr in zip(rows, fnmr_F, strict=True):
                        row[f"FMR {fmr:.0e}, {_THRESHOLDS[threshold]}"] = float(fnmr)
            if lines:
                curves[f"fnmr_at_fmr_{fmr:.0e}_{threshold}"] = self._curve(fmr, threshold, lines)
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars=scalars,
            counts={"pairs": len(pairs.same_N)},
            curves=curves,
            tables=tables,
        )

    def _qualities(self, known: Scores) -> dict[str, NDArray[np.float64]]:
        """The quality of each pair by every score. Raises `UserError` for one that nobody gives."""
        if missing := [score for score in self.scores if score not in known]:
            raise UserError(
                f"{self.name}: nothing gives the score {missing[0]}; this network has "
                f"{', '.join(known)}. Train it with objective=cr_fiqa for quality, or give a CSV "
                "with that column as scores_file"
            )
        return {score: discard.pair_quality(known[score]) for score in self.scores}

    def _curve(self, fmr: float, threshold: str, fnmrs: Mapping[str, NDArray[np.float64]]) -> Curve:
        """All scores in one plot, with what leaving out at random would give, and the best that is
        possible."""
        of_all = next(iter(fnmrs.values()))[0]
        lines = {score: (discard.FRACTIONS, fnmr_F) for score, fnmr_F in fnmrs.items()}
        if threshold == "fixed":
            lines["best possible"] = (discard.FRACTIONS, discard.best_possible(of_all))
        return Curve(
            f"{self.name}: FNMR at FMR {fmr:.0e}, {_THRESHOLDS[threshold]}",
            "share of pairs left out",
            "false non-match rate",
            discard.FRACTIONS,
            np.full(discard.STEPS, of_all),
            lines=lines,
        )


def _short(name: str, root: Path) -> str:
    """What a file of scores calls an image of a set: by its number, or by its path below `root`."""
    path = Path(name)
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return name.removeprefix("image ")


def _name(score: str, fmr: float, threshold: str) -> str:
    """What the area is called in the record."""
    return f"{score}_area_at_fmr_{fmr:.0e}" + ("_anew" if threshold == "anew" else "")
