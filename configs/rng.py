"""Counter-based randomness: every random choice of a run is a pure function of a seed and a
position, on any machine, at any world size.

splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) is a
bijection of 64-bit words, so distinct counters never collide, and unlike numpy's generators it is
ours to keep stable for ever.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


class Stream(IntEnum):
    """What random numbers are drawn for; as a part of a key it keeps draws of one seed apart. The
    values never change, or every run would."""

    ORDER_SHARDS = 1
    ORDER_SAMPLES = 2
    AUGMENT = 3
    AUGMENT_MORE = 4
    PK_IDENTITIES = 5
    PK_IMAGES = 6
    MIXTURE_PARTS = 7
    MIXTURE_SLOTS = 8
    TRANSFORM = 9
    """Transforms beyond those whose numbers are in AUGMENT and AUGMENT_MORE, and all transforms of
    other views of an image than the main one."""
    CONVERT_CLASSES = 11
    CONVERT_IMAGES = 12
    CONVERT_GROUPS = 13
    PAIRS_SAME = 21
    PAIRS_OTHER = 22
    MISALIGNMENT = 23
    """In which directions the protocol misalignment moves images."""
    ATTACK_START = 25
    NETWORK_STEP = 31
    """Dropout, stochastic depth and token masking."""
    TOKEN_MASKS = 32
    NETWORK_WEIGHTS = 41
    PROBE_SPLIT = 51
    PROBE_EPISODES = 52
    WARP = 61
    """Warps against the network, of which gradients decide where they go."""
    HEAD_SUB_CENTERS = 0x504C414E
    HEAD_ROUNDING = 0x524F554E
    HEAD_SAMPLING = 0x53414D50
    HEAD_ADDED_ROWS = 0x4E4557


def mix(words: Words) -> Words:
    """splitmix64's step of each word."""
    with np.errstate(over="ignore"):
        z = words + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def key(*numbers: int) -> int:
    """One 64-bit key from any non-negative integers, order mattering."""
    word = np.zeros(1, np.uint64)
    for number in numbers:
        word = mix(word ^ np.uint64(number))
    return int(word[0])


def words(stream_key: int, counters: Words) -> Words:
    """Random 64-bit words of the counters in the stream."""
    return mix(mix(counters) ^ np.uint64(stream_key))


def uniform(stream_key: int, counters: Words) -> NDArray[np.float64]:
    """Uniform in [0, 1) of the counters in the stream."""
    return (words(stream_key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(stream_key: int, length: int) -> NDArray[np.int64]:
    """A random order of range(length): the argsort of distinct random words."""
    return np.argsort(words(stream_key, np.arange(length, dtype=np.uint64)))


def shuffled(
    stream_keys: Words, places: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each element, find what stands at its place in a random order of range(length), without
    making the order. The arrays have one shape.

    A Feistel network of six rounds over the next power of four, walked until it lands inside (Black
    and Rogaway: Ciphers with arbitrary finite domains, CT-RSA 2002).
    """
    half = np.array(
        [max(1, (int(n) - 1).bit_length() + 1 >> 1) for n in np.unique(lengths)], np.uint64
    )
    half = half[np.unique(lengths, return_inverse=True)[1]]
    mask = (np.uint64(1) << half) - np.uint64(1)
    found, todo = places.astype(np.uint64), np.arange(len(places))
    while len(todo):
        left, right, bits = found[todo] >> half[todo], found[todo] & mask[todo], mask[todo]
        for turn in range(6):
            left, right = (
                right,
                left ^ (mix(mix(right + np.uint64(turn << 56)) ^ stream_keys[todo]) & bits),
            )
        found[todo] = left << half[todo] | right
        todo = todo[found[todo] >= lengths[todo].astype(np.uint64)]
    return found.astype(np.int64)
