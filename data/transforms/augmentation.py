"""A list of transforms made ready: what is drawn for each image, and what the decoder carries
out."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng, schema
from manyfaces.configs.errors import UserError
from manyfaces.data.transforms.transform import Drawn, Transform

MAIN = "main"
"""The name of the view that every run has unless its objective has views of its own."""
_COLUMNS = 16
"""Numbers a position of the streams AUGMENT and AUGMENT_MORE."""


@dataclass(frozen=True)
class Choices:
    """What was drawn for N images: the arguments of each step of the augmentation by name, int32 or
    float32, one row an image."""

    steps: tuple[Drawn, ...]

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "Choices":
        """The choices of some of the images."""
        return Choices(
            tuple({name: values[rows] for name, values in step.items()} for step in self.steps)
        )


@dataclass(frozen=True)
class _Numbers:
    """Where the random numbers of one transform of the list come from."""

    transform: Transform
    word: str
    """Its kind."""
    number: int
    """How many of its kind stand before it in the list."""

    def uniform(self, seed: int, positions_N: NDArray[np.int64], view: str) -> NDArray[np.float64]:
        """[N, num_uniform] random numbers in [0, 1), a pure function of the seed and each position.

        The first of a kind has its `columns` in the main view. All else has a stream a column, by
        the kind, the place among its kind and the view, so that one more transform or number does
        not move the others.
        """
        unsigned_N = positions_N.astype(np.uint64)
        columns = []
        if self.transform.columns and self.number == 0 and view == MAIN:
            for stream, column in self.transform.columns:
                counters_N = unsigned_N * np.uint64(_COLUMNS) + np.uint64(column)
                columns.append(rng.uniform(rng.key(seed, stream), counters_N))
        else:
            own = (_hashed(self.word), self.number, _hashed(view))
            for column in range(self.transform.num_uniform):
                key = rng.key(seed, rng.Stream.TRANSFORM, *own, column)
                columns.append(rng.uniform(key, unsigned_N))
        return np.stack(columns, 1)


def _hashed(word: str) -> int:
    """63 bits of the word's SHA-256, the same on every machine."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") >> 1


class Augmentation:
    """The transforms of a configuration for images of one size.

    `steps` are the transforms to carry out, in order, those that can be joined being one. Raises
    `UserError` for a custom transform that is none.
    """

    def __init__(self, transforms: Sequence[schema.Transform], image_hw: tuple[int, int]) -> None:
        self.image_hw = image_hw
        self.steps: list[Transform] = []
        self._numbers: list[_Numbers] = []
        count = Counter[str]()
        for config in transforms:
            transform: Transform = config.build()
            word = str(config.word())
            self._numbers.append(_Numbers(transform, word, count[word]))
            count[word] += 1
            joined = self.steps[-1].joined(transform) if self.steps else None
            if joined is not None:
                self.steps[-1] = joined
            else:
                self.steps.append(transform)

    def draw(self, seed: int, positions_N: NDArray[np.int64], view: str = MAIN) -> Choices:
        """The choices at each position of the stream; a position is one appearance of a sample, and
        each view of it has choices of its own."""
        numbers = iter(self._numbers)
        steps = []
        for step in self.steps:
            columns = [next(numbers).uniform(seed, positions_N, view) for _ in step.parts]
            drawn = step.draw(np.concatenate(columns, 1), self.image_hw)
            steps.append(_checked(drawn, step, len(positions_N)))
        return Choices(tuple(steps))

    def example(self) -> Choices:
        """Choices of one image, for their types and shapes."""
        return self.draw(0, np.zeros(1, np.int64))


def _checked(drawn: Drawn, transform: Transform, num_images: int) -> Drawn:
    """What was drawn, in the types that DALI takes. Raises `UserError` unless it has a row an
    image."""
    checked = {}
    for name, values in drawn.items():
        values = np.asarray(values)
        if not values.ndim or len(values) != num_images:
            raise UserError(
                f"data.augment: {type(transform).__name__}.draw: {name} has shape "
                f"{values.shape} for {num_images} images; return one row an image"
            )
        is_float = np.issubdtype(values.dtype, np.floating)
        checked[name] = values.astype(np.float32 if is_float else np.int32)
    return checked
