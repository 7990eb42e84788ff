"""What a network returns: a backbone, with or without score heads beside it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from manyfaces.configs.errors import UserError


class Output(NamedTuple):
    """Named embeddings of N images and, where the network has them, its tokens.

    `main` is the embedding that is evaluated and exported; a network with several branches names
    the others.
    """

    embeddings: dict[str, Tensor]
    """[N, D] each."""
    tokens_NTD: Tensor | None = None
    """Last tokens of a transformer, [N, T, width]."""
    scores: Mapping[str, Tensor] = MappingProxyType({})
    """Numbers about each image by name, [N] each, such as its `quality`."""


def as_output(value: object) -> Output:
    """What a network returned, as an `Output`: a tensor alone is the embedding `main`.

    Raises `UserError` for anything else, and for an `Output` without the embedding `main`.
    """
    if isinstance(value, Output):
        if "main" not in value.embeddings:
            raise UserError(
                f"the network returned the embeddings {', '.join(value.embeddings) or 'none'}; one "
                "of them has to be named main"
            )
        return value
    if isinstance(value, Tensor):
        return Output({"main": value})
    raise UserError(
        f"the network returned a {type(value).__name__}; return embeddings as a tensor [N, D], or "
        "an Output of manyfaces.models.backbones.output"
    )
