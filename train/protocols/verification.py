"""Protocol verification: pairs of images of one identity or of two, as InsightFace's
`eval/verification.py` scores them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.data.sources.verification_bin import read_bin
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.result import Curve, Encoded, Histogram, Quantity, Result
from manyfaces.train.protocols.protocol import Protocol

# By chance, a fold of so many pairs in a set of so many of each kind is never of one kind.
_FOLD_THAT_TELLS, _SHARE_THAT_TELLS = 50, 0.25


def _tar(far: float, heading: str = "") -> Quantity:
    return Quantity(
        f"tar_at_far_{far:.0e}",
        f"TAR at FAR {far:.0e}",
        heading,
        unknown="too few pairs to tell",
    )


def _check_folds(path: str, same: NDArray[np.bool_]) -> None:
    """Raise `UserError` where pairs are too few for their folds, or are not in the folds' order."""
    if len(same) < metrics.FOLDS:
        raise UserError(
            f"{path}: {len(same)} pairs are too few pairs for {metrics.FOLDS} folds; give "
            f"{metrics.FOLDS} at least"
        )
    folds = np.array_split(same, metrics.FOLDS)
    share = same.mean()
    if len(folds[-1]) < _FOLD_THAT_TELLS or min(share, 1 - share) < _SHARE_THAT_TELLS:
        return
    for number, fold in enumerate(folds, 1):
        if fold.all() or not fold.any():
            kind = "one identity" if fold.all() else "two identities"
            raise UserError(
                f"{path}: all {len(fold)} pairs of fold {number} of {metrics.FOLDS} show {kind}; "
                "write both kinds of pair by turns, so that each tenth of the file has both"
            )


class Verification(Protocol):
    """A verification set in InsightFace's `.bin` layout.

    The sum of an image's embedding and its mirror image's (`flip`) is compared by cosine. Raises
    `UserError` for a file that is no such set, for fewer pairs than folds, and for folds in which
    all pairs are of one kind though the set has both, where the files of all positive and of all
    negative pairs were joined.
    """

    quantities: Sequence[Quantity] = (
        Quantity("accuracy", "accuracy (10-fold)", "10-fold"),
        Quantity("best_accuracy", "accuracy (best threshold)", "best"),
        Quantity("auc", "AUC", "AUC", format=".4f", unknown="one kind of pair only"),
        _tar(1e-1),
        _tar(1e-2, "TAR 1e-2"),
        _tar(1e-3, "TAR 1e-3"),
        _tar(1e-4),
    )

    def __init__(self, path: str, flip: Flip = "sum") -> None:
        self.path = path
        self.pairs = read_bin(path)
        _check_folds(path, self.pairs.same)
        self.flip = flip

    def images(self) -> Sequence[Encoded]:
        return self.pairs.blobs

    def image_name(self, index: int) -> str:
        return f"{self.path}: image {index}"

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        scores, same = metrics.cosine_scores(embeddings_ND), self.pairs.same
        report = metrics.report(scores, same)
        tars = {f"tar_at_far_{far}": tar for far, tar in report.tar_at_far.items()}
        far, tar = metrics.roc(scores, same)
        half_a_pair = 0.5 / max(int((~same).sum()), 1)  # 0 has no place on a logarithmic axis
        title = f"{self.name}: ROC"
        if report.auc is not None:
            title += f", AUC {report.auc:.3f}"
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={
                "accuracy": report.accuracy,
                "best_accuracy": report.best_accuracy,
                "auc": report.auc,
                **tars,
            },
            counts={"pairs": report.pairs},
            deviations={"accuracy": report.accuracy_std},
            curves={
                "roc": Curve(
                    title,
                    "false accept rate",
                    "true accept rate",
                    far.clip(half_a_pair),
                    tar,
                    log_x=True,
                )
            },
            histograms={
                "scores": Histogram(
                    f"{self.name}: {report.accuracy:.1%} (10-fold)",
                    "cosine of the pair",
                    "pairs",
                    {"same identity": scores[same], "different": scores[~same]},
                )
            },
            tables={"tar_at_far": report.tar_at_far},
        )
