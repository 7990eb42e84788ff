"""What logistic losses have in common: each class asks by itself whether the face is its own, with
one threshold for all."""

from torch import Tensor

from manyfaces.models.margins.margin import Margin, State, number


class LogisticMargin(Margin):
    """A logistic loss of each class, whose logits share a learnt bias: one threshold for all pairs.

    The bias moves by SGD with the rows' learning rate and momentum, and does not decay. A subclass
    sets `binary`, and calls `start_bias` in `begin`.
    """

    scale: float

    def start_bias(self, bias: float, scale: float) -> None:
        """Let the bias start here; it is added to logits that are multiplied by `scale`."""
        self.scale = scale
        self.state = {"bias": number(bias), "bias_momentum": number(0.0)}

    def learn(self, d_bias: Tensor, lr: Tensor, momentum: float) -> State:
        moved = momentum * self.state["bias_momentum"] + d_bias
        return {"bias": self.state["bias"] - lr * moved, "bias_momentum": moved}

    def offset(self) -> Tensor:
        """The bias in units of the scale, float64 []."""
        return self.state["bias"] / self.scale
