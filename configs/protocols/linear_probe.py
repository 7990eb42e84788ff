"""Protocol linear_probe: a linear classifier on embeddings that stay as they are."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from manyfaces.configs.protocols.probe import SplitProbe


class LinearProbe(SplitProbe):
    """Logistic regression on unit embeddings: how much of the labels a linear map reads off them.
    It is trained to the end on each worker, by L-BFGS in float64."""

    kind: Literal["linear_probe"] = "linear_probe"
    target: ClassVar[str] = "manyfaces.train.protocols.linear_probe.LinearProbe"

    c: PositiveFloat = 100.0
    """Factor of the sum of the cross-entropies beside half the squared weights: the larger, the
    less regularised (scikit-learn's `C`)."""
    max_iterations: PositiveInt = 200
    """Most steps of L-BFGS."""
