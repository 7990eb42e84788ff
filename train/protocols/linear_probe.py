"""Protocol linear_probe: a linear classifier on embeddings that stay as they are.

Shapes: N images that are learnt from, D the embedding, C identities.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.nearest import Floats
from manyfaces.train.evaluation.result import Quantity, Result
from manyfaces.train.protocols.probe import Ints, SplitProbe

_TOLERANCE = 1e-7
"""Largest gradient of the mean loss at which the fit ends."""


class LinearProbe(SplitProbe):
    """Logistic regression on unit embeddings. Raises `UserError` as `SplitProbe` does."""

    quantities: Sequence[Quantity] = (
        Quantity("accuracy", "accuracy (linear probe)", "linear"),
        Quantity("learnt_accuracy", "accuracy on the images learnt from", "learnt"),
    )

    def __init__(
        self,
        path: str,
        test: str | None = None,
        flip: Flip = "none",
        seed: int = 0,
        c: float = 100.0,
        max_iterations: int = 200,
    ) -> None:
        super().__init__(path, test, flip, seed)
        self.c, self.max_iterations = c, max_iterations

    def result(self, embeddings_ND: Floats) -> Result:
        learnt_ND, asked_QD = self.split(embeddings_ND)
        classes_C, own_N = np.unique(self.code_N, return_inverse=True)
        advance = self.advance(self.max_iterations)
        fitted = fit(learnt_ND, own_N, self.c, self.max_iterations, advance)
        hits_Q = classes_C[fitted.predict(asked_QD)] == self.code_Q
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={
                "accuracy": float(hits_Q.mean()),
                "learnt_accuracy": float((fitted.predict(learnt_ND) == own_N).mean()),
            },
            counts=self.counts(),
        )


class Fitted(NamedTuple):
    """A linear classifier, float64."""

    weight_CD: Tensor
    bias_C: Tensor

    def predict(self, embeddings_ND: Floats) -> Ints:
        """The class of each row."""
        rows_ND = torch.from_numpy(embeddings_ND).double()
        chosen: Ints = F.linear(rows_ND, self.weight_CD, self.bias_C).argmax(1).numpy()
        return chosen


def fit(
    embeddings_ND: Floats,
    classes_N: Ints,
    c: float,
    max_iterations: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> Fitted:
    """The classifier with the least sum of cross-entropies times `c` and half the squared weights;
    the bias is not regularised. `advance` is told of each evaluation."""
    rows_ND, targets_N = torch.from_numpy(embeddings_ND).double(), torch.from_numpy(classes_N)
    num_classes = int(classes_N.max()) + 1
    weight_CD = torch.zeros(num_classes, rows_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_CD, bias_C],
        max_iter=max_iterations,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(rows_ND, weight_CD, bias_C), targets_N)
        loss = loss + weight_CD.square().sum() / (2 * c * len(rows_ND))
        loss.backward()
        advance(1)
        return loss

    with torch.enable_grad():
        optimizer.step(evaluate)
    return Fitted(weight_CD.detach(), bias_C.detach())
