"""The neck: what normalises the features of an embedding layer."""

from torch import nn


def build_neck(kind: str, width: int, eps: float = 1e-5) -> nn.Module:
    """The layer that takes features [N, width] and returns them normalised, by the word of
    `model.neck`; `none` leaves them as they are. `eps` is added to a variance."""
    if kind == "batchnorm":
        return nn.BatchNorm1d(width, eps=eps)
    if kind == "layernorm":
        return nn.LayerNorm(width, eps=eps)
    assert kind == "none", kind
    return nn.Identity()
