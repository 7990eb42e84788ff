"""P identities x K images a batch, for triplet losses and balanced training.

The stream goes in rounds. A round shows every identity once, in random order, with K of its images;
from round to round an identity goes through its images in random orders of its own, so that each is
seen as often as the others (one with fewer than K images shows some again). A batch of P K samples
that starts at a multiple of K holds P different identities, but for one that spans two rounds.
Neighbours in the stream lie anywhere in the dataset, so all shards have to be on the node.
"""

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.data.orders.order import Samples


class PK:
    """An `Order` of one part in units of K images of one identity. Keeps 8 bytes a sample; finding
    each identity's samples takes a sort at the start."""

    def __init__(self, part: Samples, seed: int, images_per_identity: int) -> None:
        self.num_shards = len(part.samples_per_shard)
        identity_N = part.indexed_identity_N  # edits move no sample, so that runs resume
        self.num_samples, self.seed = len(identity_N), seed
        self.unit = images_per_identity
        self.by_identity_N = np.argsort(identity_N, kind="stable")
        _, self.first_C, self.count_C = np.unique(
            identity_N[self.by_identity_N], return_index=True, return_counts=True
        )

    def shards(self, position: int, windows: int) -> list[NDArray[np.int64]]:
        """All shards, in one window."""
        return [np.arange(self.num_shards)]

    def ids(self, position: int, count: int) -> NDArray[np.int64]:
        """Sample ids [count] of the stream from `position` on."""
        turn, image = np.divmod(position + np.arange(count), self.unit)
        rounds, place = np.divmod(turn, len(self.first_C))
        keys = np.array(
            [rng.key(self.seed, rng.Stream.PK_IDENTITIES, r) for r in np.unique(rounds).tolist()],
            np.uint64,
        )
        keys = keys[np.unique(rounds, return_inverse=True)[1]]
        who = rng.shuffled(keys, place, np.full(count, len(self.first_C)))
        # The identity's own stream of images: it has been through `seen` of them before, in orders
        # of its own.
        seen = rounds * self.unit + image
        lap, place = np.divmod(seen, self.count_C[who])
        keys = rng.words(rng.key(self.seed, rng.Stream.PK_IMAGES), who.astype(np.uint64)) + rng.mix(
            lap.astype(np.uint64)
        )
        ids: NDArray[np.int64] = self.by_identity_N[
            self.first_C[who] + rng.shuffled(keys, place, self.count_C[who])
        ]
        return ids
