"""Protocol verification: pairs of images of one identity or of two, as InsightFace's
`eval/verification.py` scores them."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.bootstrap import mean_interval, roc_intervals
from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.result import Encoded, Example, Histogram, Quantity, Result
from manyfaces.train.evaluation.roc_report import (
    FARS,
    ONE_KIND,
    rate_intervals,
    rate_quantities,
    rate_scalars,
    roc_curve,
    tar_table,
)
from manyfaces.train.protocols.pair_sets import PairSet, open_pairs
from manyfaces.train.protocols.protocol import Protocol

Floats = NDArray[np.float64]

_EXAMPLES = 12


class Verification(Protocol):
    """A set of pairs: a `.bin` in InsightFace's layout, or a list.

    Raises `UserError` as `open_pairs` does.
    """

    quantities: Sequence[Quantity] = (
        Quantity("accuracy", "accuracy (10-fold)", "10-fold"),
        Quantity("best_accuracy", "accuracy (best threshold)", "best"),
        *rate_quantities(),
        Quantity("val", f"VAL at FAR {metrics.VAL_FAR:.0e} (10-fold)", unknown=ONE_KIND),
        Quantity("threshold", "threshold of the cosine (10-fold)", format=".3f"),
    )

    def __init__(
        self,
        path: str,
        root: str | None = None,
        flip: Flip = "sum",
        interleave: bool = False,
    ) -> None:
        self.path, self.flip = path, flip
        self.pairs: PairSet = open_pairs(path, root, interleave=interleave)

    def images(self) -> Sequence[Encoded]:
        return self.pairs.images

    def keys(self) -> Sequence[Hashable]:
        return super().keys() if self.pairs.keys is None else self.pairs.keys

    def image_name(self, index: int) -> str:
        return f"{self.path}: {self.pairs.names[index]}"

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        scores, same = metrics.cosine_scores(embeddings_ND), self.pairs.same_N
        distances = metrics.squared_distances(embeddings_ND)
        folds, val = metrics.kfold(distances, same), metrics.val_at_far(distances, same)
        identities = self.pairs.identity_numbers()
        roc, known = Roc.of(scores, same), roc_intervals(scores, same, FARS, identities)
        accuracy, threshold = float(folds.accuracy_F.mean()), 1 - folds.threshold_F.mean() / 2
        title = f"{self.name}: {accuracy:.1%} (10-fold)"
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={
                "accuracy": accuracy,
                "best_accuracy": metrics.best_accuracy(scores, same),
                **rate_scalars(roc),
                "val": val.val,
                "threshold": float(threshold),
            },
            counts={"pairs": len(same)},
            deviations={"accuracy": float(folds.accuracy_F.std())}
            | ({} if val.std is None else {"val": val.std}),
            intervals={"accuracy": mean_interval(folds.correct_N, identities)}
            | rate_intervals(known),
            curves={"roc": roc_curve(self.name, roc, known)},
            histograms={
                "scores": Histogram(
                    title,
                    "cosine of the pair",
                    "pairs",
                    {"same identity": scores[same], "different": scores[~same]},
                    mark=float(threshold),
                )
            },
            tables={"tar_at_far": tar_table(roc, known)},
            examples=hardest(self.pairs, scores),
        )


def hardest(pairs: PairSet, scores_N: Floats) -> dict[str, list[Example]]:
    """The genuine pairs of the lowest scores, and the impostor pairs of the highest."""

    def shown(kind_N: NDArray[np.bool_], sign: int) -> list[Example]:
        places = np.flatnonzero(kind_N)
        order = np.argsort(sign * scores_N[places], kind="stable")
        return [_example(pairs, pair, scores_N) for pair in places[order[:_EXAMPLES]].tolist()]

    return {
        "hardest genuine pairs": shown(pairs.same_N, 1),
        "hardest impostor pairs": shown(~pairs.same_N, -1),
    }


def _example(pairs: PairSet, pair: int, scores_N: Floats) -> Example:
    images: Any = [pairs.images[2 * pair], pairs.images[2 * pair + 1]]
    names = (name.rpartition("/")[2] for name in pairs.names[2 * pair : 2 * pair + 2])
    return Example(tuple(images), ", ".join(names), float(scores_N[pair]))
