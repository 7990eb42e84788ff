"""Protocol knn: the labels of the nearest images vote.

Shapes: N images that are learnt from, Q that are asked for, K neighbours, D the embedding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.nearest import Floats, blocks, exact_search
from manyfaces.train.evaluation.result import Quantity, Result
from manyfaces.train.protocols.probe import Ints, SplitProbe


class KNN(SplitProbe):
    """Weighted k-nearest neighbours. Raises `UserError` as `SplitProbe` does."""

    quantities: Sequence[Quantity] = (
        Quantity("accuracy", "accuracy (weighted k-NN)", "k-NN"),
        Quantity("nearest", "accuracy (nearest neighbour)", "1-NN"),
    )

    def __init__(
        self,
        path: str,
        test: str | None = None,
        flip: Flip = "none",
        seed: int = 0,
        neighbours: int = 20,
        temperature: float = 0.07,
    ) -> None:
        super().__init__(path, test, flip, seed)
        self.neighbours, self.temperature = neighbours, temperature

    def result(self, embeddings_ND: Floats) -> Result:
        learnt_ND, asked_QD = self.split(embeddings_ND)
        found = exact_search(asked_QD, blocks(learnt_ND), min(self.neighbours, len(learnt_ND)))
        labels_QK = self.code_N[found.rows_QK]
        voted_Q = vote(found.scores_QK, labels_QK, self.temperature)
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={
                "accuracy": float((voted_Q == self.code_Q).mean()),
                "nearest": float((labels_QK[:, 0] == self.code_Q).mean()),
            },
            counts=self.counts(),
        )


def vote(scores_QK: NDArray[np.floating], labels_QK: Ints, temperature: float) -> Ints:
    """The label of each query with the largest sum of exp(cosine / temperature) over its
    neighbours; of equal ones that of the nearest neighbour."""
    scores_QK = scores_QK.astype(np.float64)
    weights_QK = np.exp((scores_QK - scores_QK[:, :1]) / temperature)
    votes_QK = np.zeros_like(weights_QK)
    for neighbour in range(labels_QK.shape[1]):
        same_QK = labels_QK == labels_QK[:, neighbour, None]
        votes_QK += same_QK * weights_QK[:, neighbour, None]
    best_Q = votes_QK.argmax(1)
    chosen: Ints = labels_QK[np.arange(len(labels_QK)), best_Q]
    return chosen
