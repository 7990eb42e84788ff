"""One protocol's result for a network, worked out by all ranks together."""

from collections.abc import Callable

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.split import batch_share
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.protocol import Protocol


def evaluate(
    protocol: Protocol,
    embedder: Embedder,
    progress: Callable[[int], None] = lambda images: None,
) -> Result:
    """The protocol's result. Each image is embedded once, by one rank of the process group where
    there is one; all ranks get the result.

    `progress` is told how many more images this rank has done. Collective; raises `UserError` on
    every rank alike for an image that is not a whole, decodable JPEG.
    """
    distinct = protocol.distinct
    rank, world_size = 0, 1
    if dist.is_initialized():
        rank, world_size = dist.get_rank(), dist.get_world_size()
    first, end = batch_share(len(distinct.images), rank, world_size)

    def embed_share() -> NDArray[np.float32]:
        return embedder.embed(
            distinct.images[first:end],
            mirrored=protocol.mirrored,
            name=lambda number: protocol.image_name(int(distinct.first_n[first + number])),
            progress=progress,
        ).numpy()

    if world_size == 1:
        embeddings_nD = embed_share()
    else:
        share = on_all_ranks(embed_share)
        shares: list[NDArray[np.float32]] = [share] * world_size
        dist.all_gather_object(shares, share)
        embeddings_nD = np.concatenate(shares)
    return protocol.result(embeddings_nD[distinct.index_N])
