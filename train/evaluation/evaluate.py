"""One protocol's result for a network, worked out by all ranks together."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.errors import UserError
from manyfaces.configs.split import batch_share
from manyfaces.train.evaluation.embedder import EmbeddedImages, Embedder
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.protocol import Protocol, own_code

Probed = NDArray[np.float64]
"""What a piece of a protocol's work found."""


def evaluate(
    protocol: Protocol,
    embedder: Embedder,
    progress: Callable[[int], None] = lambda images: None,
    working: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """The protocol's result. Each image is embedded once, by one rank of the process group where
    there is one; all ranks get the result.

    `progress` is told how many more images this rank has done, and 0 while the protocol works with
    their embeddings; `working` then is told how far that is, and of how much. Collective; raises
    `UserError` on every rank alike for an image that is not a whole, decodable JPEG or PNG, for
    embeddings that are not finite, and for what a protocol of one's own raises.
    """
    rank, world_size = 0, 1
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()

    def told(done: int, total: int) -> None:
        progress(0)
        working(done, total)

    protocol.working = told

    def embed_share() -> EmbeddedImages:
        distinct = own_code(protocol, lambda: protocol.distinct)
        first, end = batch_share(len(distinct.images), rank, world_size)
        return embedder.embed_scored(
            distinct.images[first:end],
            flip=protocol.flip,
            name=lambda number: protocol.image_name(int(distinct.first_n[first + number])),
            progress=progress,
        )

    def probe_share() -> list[Probed]:
        first, end = batch_share(own_code(protocol, protocol.pieces), rank, world_size)
        found = []
        for piece in range(first, end):
            found.append(own_code(protocol, partial(protocol.probe, embedder, piece)))
            progress(0)
        return found

    if world_size == 1:
        return _result(protocol, embed_share(), probe_share())
    share = on_all_ranks(embed_share)
    shares: list[EmbeddedImages] = [share] * world_size
    dist.all_gather_object(shares, share)
    probed: list[Probed] = []
    if own_code(protocol, protocol.pieces):
        own = on_all_ranks(probe_share)
        parts: list[list[Probed]] = [own] * world_size
        dist.all_gather_object(parts, own)
        probed = [found for part in parts for found in part]
    return on_all_ranks(lambda: _result(protocol, _joined(shares), probed))


def _joined(shares: Sequence[EmbeddedImages]) -> EmbeddedImages:
    """The shares of all ranks behind one another; a rank without an image knows of no score."""
    names = {name for share in shares for name in share.scores}
    return EmbeddedImages(
        np.concatenate([share.embeddings_ND for share in shares]),
        {
            name: np.concatenate([share.scores[name] for share in shares if share.scores])
            for name in sorted(names)
        },
    )


def _result(protocol: Protocol, embedded: EmbeddedImages, probed: Sequence[Probed]) -> Result:
    """The result for what was embedded of the protocol's n distinct images, and for what its pieces
    of work found."""
    index_N, embeddings_nD = protocol.distinct.index_N, embedded.embeddings_ND
    for what, values in {"embeddings": embeddings_nD, **embedded.scores}.items():
        finite_n = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
        unusable = int((~finite_n).sum())
        if unusable:
            raise UserError(
                f"{protocol.name}: the network gives NaN or infinite {what} for {unusable} of "
                f"{len(values)} images; evaluate an earlier checkpoint"
            )
    scores = {name: scores_n[index_N] for name, scores_n in embedded.scores.items()}
    embeddings_ND = embeddings_nD[index_N]
    result: object = own_code(
        protocol,
        lambda: (
            protocol.probed_result(embeddings_ND, probed)
            if probed
            else protocol.scored_result(embeddings_ND, scores)
        ),
    )
    if not isinstance(result, Result):
        raise UserError(
            f"{protocol.name}: result() gives {type(result).__name__}; give a "
            f"{Result.__module__}.Result"
        )
    return replace(result, source=protocol.source)
