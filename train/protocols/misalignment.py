"""Protocol misalignment: a verification set whose second images are shifted, turned and scaled.

Shapes: N pairs, A amounts.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.bootstrap import mean_interval
from manyfaces.train.evaluation.decoding import as_array, not_decodable
from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.result import Curve, Encoded, Quantity, Result
from manyfaces.train.protocols.pair_sets import open_pairs
from manyfaces.train.protocols.protocol import Protocol, image_keys

# Without compression a PNG costs less than a JPEG, and loses nothing.
_AS_IT_IS = (cv2.IMWRITE_PNG_COMPRESSION, 0)
_WAYS = {"shift": "shift, share of the side", "angle": "angle, degrees", "scaling": "scaling"}


class Amount(NamedTuple):
    """A way to misalign a face, and by how much."""

    way: str
    """`shift`, `angle` or `scaling`."""
    size: float

    def __str__(self) -> str:
        return f"{self.way} {self.size:g}"

    def matrix(self, direction: float, width: int, height: int) -> NDArray[np.float64]:
        """Where each pixel goes to, [2, 3], for a direction from 0 to 1: of a shift the whole
        circle, of a turn and of a scaling one side or the other."""
        angle, scale, right, down = 0.0, 1.0, 0.0, 0.0
        to_one_side = direction < 0.5
        if self.way == "shift":
            right = self.size * width * math.cos(2 * math.pi * direction)
            down = self.size * height * math.sin(2 * math.pi * direction)
        elif self.way == "angle":
            angle = self.size if to_one_side else -self.size
        else:
            scale = 1 + self.size if to_one_side else 1 / (1 + self.size)
        centre = ((width - 1) / 2, (height - 1) / 2)
        turned = np.asarray(cv2.getRotationMatrix2D(centre, angle, scale), np.float64)
        turned[:, 2] += right, down
        return turned


class Misaligned(Sequence[Encoded]):
    """The images of a set, and behind them for each amount the second image of each pair, made when
    it is taken. Raises `UserError`, when it is taken, for one that is no whole image."""

    def __init__(
        self,
        images: Sequence[Encoded],
        amounts: Sequence[Amount],
        directions_N: NDArray[np.float64],
        names: Sequence[str],
        places: range | None = None,
    ) -> None:
        self._images, self._amounts = images, tuple(amounts)
        self._directions_N, self._names = directions_N, names
        whole = range(len(images) + len(amounts) * len(directions_N))
        self._places = whole if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "Misaligned": ...
    def __getitem__(self, index: int | slice) -> "Encoded | Misaligned":
        if isinstance(index, slice):
            return Misaligned(
                self._images, self._amounts, self._directions_N, self._names, self._places[index]
            )
        place = self._places[index]
        if place < len(self._images):
            return self._images[place]
        number, pair = divmod(place - len(self._images), len(self._directions_N))
        original = 2 * pair + 1
        pixels = cv2.imdecode(as_array(self._images[original]), cv2.IMREAD_COLOR)
        if pixels is None:
            raise not_decodable(self._names[original])
        height, width = pixels.shape[:2]
        matrix = self._amounts[number].matrix(float(self._directions_N[pair]), width, height)
        moved = cv2.warpAffine(pixels, matrix, (width, height), flags=cv2.INTER_LINEAR)
        return bytes(cv2.imencode(".png", moved, _AS_IT_IS)[1])


class Misalignment(Protocol):
    """Accuracy by the amount of misalignment. Raises `UserError` as `open_pairs` does."""

    reads_lazily = True
    quantities: Sequence[Quantity] = (
        Quantity("misaligned_accuracy", "accuracy (10-fold), mean of all amounts", "misaligned"),
        Quantity("accuracy", "accuracy (10-fold), as it is"),
    )

    def __init__(
        self,
        path: str,
        root: str | None = None,
        interleave: bool = False,
        flip: Flip = "sum",
        shifts: Sequence[float] = (),
        angles: Sequence[float] = (),
        scalings: Sequence[float] = (),
        seed: int = 0,
    ) -> None:
        self.path, self.flip = path, flip
        self.pairs = open_pairs(path, root, interleave=interleave)
        by_way = {"shift": shifts, "angle": angles, "scaling": scalings}
        self.amounts = [
            Amount(way, size) for way, sizes in by_way.items() for size in sorted(set(sizes))
        ]
        counters = np.arange(len(self.pairs.same_N), dtype=np.uint64)
        self.directions_N = rng.uniform(rng.key(seed, rng.Stream.MISALIGNMENT), counters)

    def images(self) -> Sequence[Encoded]:
        pairs = self.pairs
        return Misaligned(pairs.images, self.amounts, self.directions_N, pairs.names)

    def keys(self) -> Sequence[Hashable]:
        own = self.pairs.keys
        before = image_keys(self.pairs.images) if own is None else own
        num_pairs = len(self.directions_N)
        return [*before, *((str(each), pair) for each in self.amounts for pair in range(num_pairs))]

    def image_name(self, index: int) -> str:
        number, pair = divmod(index - 2 * len(self.directions_N), len(self.directions_N))
        if index < len(self.pairs.names):
            return f"{self.path}: {self.pairs.names[index]}"
        return f"{self.path}: {self.pairs.names[2 * pair + 1]}, {self.amounts[number]}"

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        pairs, same_N = self.pairs, self.pairs.same_N
        straight_ND, moved_ND = np.split(embeddings_ND, [2 * len(same_N)])
        identities = pairs.identity_numbers()
        table: dict[str, dict[str, float | None]] = {}
        accuracies: dict[str, float] = {}
        intervals: dict[str, tuple[float, float]] = {}
        seconds = {"as it is": straight_ND[1::2]}
        if self.amounts:
            parts = np.split(moved_ND, len(self.amounts))
            seconds |= {str(each): part for each, part in zip(self.amounts, parts, strict=True)}
        for name, second_ND in seconds.items():
            both_ND = np.stack([straight_ND[0::2], second_ND], 1).reshape(-1, second_ND.shape[1])
            folds = metrics.kfold(metrics.squared_distances(both_ND), same_N)
            accuracies[name] = float(folds.accuracy_F.mean())
            intervals[name] = mean_interval(folds.correct_N, identities)
            roc = Roc.of(metrics.cosine_scores(both_ND), same_N)
            table[name] = {"accuracy": accuracies[name], "AUC": roc.auc}
        misaligned = float(np.mean([accuracies[str(each)] for each in self.amounts]))
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={"misaligned_accuracy": misaligned, "accuracy": accuracies["as it is"]},
            counts={"pairs": len(same_N)},
            intervals={"accuracy": intervals["as it is"]},
            curves=self._curves(accuracies, intervals),
            tables={"misalignment": table},
        )

    def _curves(
        self, accuracies: dict[str, float], intervals: dict[str, tuple[float, float]]
    ) -> dict[str, Curve]:
        """The accuracy by the amount, one plot for each way."""
        curves = {}
        for way, label in _WAYS.items():
            of_way = [each for each in self.amounts if each.way == way]
            if not of_way:
                continue
            names = ["as it is", *map(str, of_way)]
            low, high = zip(*(intervals[name] for name in names), strict=True)
            curves[f"accuracy_by_{way}"] = Curve(
                f"{self.name}: accuracy by {way}",
                label,
                "accuracy (10-fold)",
                np.array([0.0, *(each.size for each in of_way)]),
                np.array([accuracies[name] for name in names]),
                low=np.array(low),
                high=np.array(high),
            )
        return curves
