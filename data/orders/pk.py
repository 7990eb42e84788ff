"""P identities x K images a batch, for triplet losses and balanced training: a pure function of
(seed, position, count).

The stream goes in rounds. A round shows every identity once, in random order, with K of its images;
from round to round an identity goes through its images in random orders of its own, so that each is
seen as often as the others (one with fewer than K images shows some again). A batch of P K samples
that starts at a multiple of K holds P different identities, but for one that spans two rounds.
Neighbours in the stream lie anywhere in the dataset, so all shards have to be near.
"""

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng

_IDENTITIES, _IMAGES = 5, 6  # streams of the counter; data.order has 1 and 2, data.augment 3 and 4


class PkOrder:
    """Of samples with these identities, uint32 [N]. Keeps 8 bytes a sample; finding each identity's
    samples takes a sort at the start."""

    def __init__(
        self, identity_N: NDArray[np.uint32], num_shards: int, seed: int, images_each: int
    ) -> None:
        self.num_shards = num_shards
        self.num_samples, self.seed, self.images_each = len(identity_N), seed, images_each
        self.by_identity_N = np.argsort(identity_N, kind="stable")
        _, self.first_C, self.count_C = np.unique(
            identity_N[self.by_identity_N], return_index=True, return_counts=True
        )

    def shards(self, position: int, windows: int) -> list[NDArray[np.int64]]:
        """What is needed next: all of them, in one window."""
        return [np.arange(self.num_shards)]

    def ids(self, position: int, count: int) -> NDArray[np.int64]:
        """Sample ids [count] of the stream from `position` on."""
        places = position + np.arange(count)
        turn, image = np.divmod(places, self.images_each)
        rounds, place = np.divmod(turn, len(self.first_C))
        keys = np.array(
            [rng.key(self.seed, _IDENTITIES, r) for r in np.unique(rounds).tolist()], np.uint64
        )
        keys = keys[np.unique(rounds, return_inverse=True)[1]]
        who = rng.shuffled(keys, place, np.full(count, len(self.first_C)))
        # The identity's own stream of images: it has been through `seen` of them before, in orders
        # of its own.
        seen = rounds * self.images_each + image
        lap, place = np.divmod(seen, self.count_C[who])
        keys = rng.words(rng.key(self.seed, _IMAGES), who.astype(np.uint64)) + rng.mix(
            lap.astype(np.uint64)
        )
        ids: NDArray[np.int64] = self.by_identity_N[
            self.first_C[who] + rng.shuffled(keys, place, self.count_C[who])
        ]
        return ids
