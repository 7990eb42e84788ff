"""Aggregation media_mean: IJB's own."""

from typing import ClassVar, Literal

from manyfaces.configs.aggregations.aggregation import Aggregation


class MediaMean(Aggregation):
    """The mean over the images of each medium (the frames of a video are one), and the sum over the
    media: InsightFace's `eval_ijbc.py`."""

    kind: Literal["media_mean"] = "media_mean"
    target: ClassVar[str] = "manyfaces.train.aggregations.media_mean.MediaMean"

    keep_norm: bool = True
    """Whether each image counts by the norm of its embedding (N1 in published tables) or all alike
    (N0)."""
    detector_score: bool = True
    """Whether each image counts by the score of the face detector (D1) or not (D0)."""

    def called(self) -> str:
        return f"{self.word()} N{self.keep_norm:d}D{self.detector_score:d}"
