"""Aggregation media_mean: the mean over frames of a medium, the sum over media."""

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.aggregations.aggregation import Aggregation, ImageSets
from manyfaces.train.evaluation.templates import pooled


class MediaMean(Aggregation):
    """InsightFace's `image2template_feature`, by the norms of the embeddings and the scores of the
    detector or without them."""

    def __init__(self, keep_norm: bool = True, detector_score: bool = True) -> None:
        self.keep_norm, self.detector_score = keep_norm, detector_score

    def templates(self, sets: ImageSets) -> NDArray[np.float64]:
        return pooled(
            sets.embeddings_ND,
            sets.members,
            length="keep" if self.keep_norm else "unit",
            weight_N=sets.detector_N if self.detector_score else None,
        )
