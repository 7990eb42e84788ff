"""Aggregation norm_weighted: the mean of unit embeddings, weighted by the norms that they had."""

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.aggregations.aggregation import Aggregation, ImageSets
from manyfaces.train.evaluation.templates import pooled


class NormWeighted(Aggregation):
    """The norm-weighted mean. A unit embedding times its norm is the embedding itself, and the sum
    of the weights is lost where the template becomes a unit vector: so it is a plain sum."""

    def templates(self, sets: ImageSets) -> NDArray[np.float64]:
        return pooled(sets.embeddings_ND, sets.members, length="keep", by_media=False)
