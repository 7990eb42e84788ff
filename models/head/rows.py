"""Class rows (centres): where they start, how they are taken and put back in 16 or 32 bits.
`row_optimizers.py` steps them.

Shapes: C this rank's classes, n a chunk of them, D the embedding.
"""

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyfaces.configs import rng, schema

INIT_BLOCK = 1024
"""Classes drawn from one generator."""
_INIT_STD = 0.01
SHORTEST = 1e-12
"""Vectors are divided by no less than this."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
_DICE_ROWS = 128
_PURPOSE = 0x524F554E  # keeps these words apart from other draws of the same seed and position


def initial(
    seed: int,
    lo: int,
    hi: int,
    dim: int,
    device: torch.device,
    *,
    unit: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rows of classes [lo, hi) and a row of zeros behind them, [hi - lo + 1, D]; each depends on
    its id and the seed only.

    Normal with standard deviation 0.01, or scaled to length 1.
    """
    rows_CD = torch.zeros(hi - lo + 1, dim, device=device, dtype=dtype)
    for block in range(lo // INIT_BLOCK, -(-hi // INIT_BLOCK) if hi > lo else 0):
        # torch's CPU generator keeps 32 bits of its seed. Counting up from a mixed seed, no two
        # blocks share them; mixed block by block, some pair of the 100,000 blocks of 100 million
        # classes would, and their classes would start as twins.
        generator = torch.Generator().manual_seed((rng.key(seed, INIT_BLOCK) + block) % 2**32)
        drawn_nD = torch.randn(INIT_BLOCK, dim, generator=generator)
        drawn_nD.mul_(reciprocal_norms(drawn_nD)[:, None] if unit else _INIT_STD)
        first = block * INIT_BLOCK
        start, stop = max(lo, first), min(hi, first + INIT_BLOCK)
        rows_CD[start - lo : stop - lo] = drawn_nD[start - first : stop - first]
    return rows_CD


def looking_is_free(device: torch.device) -> bool:
    """Whether the host may ask for a value without waiting for work in flight."""
    return device.type == "cpu"


def sent(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """On the device; pinned on the way, as the host waits for a copy from other memory."""
    tensor = torch.from_numpy(numbers)
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )


def take(tensor_C: Tensor, ids: slice | Tensor) -> Tensor:
    """A view of a slice, or a copy of rows by number; index_select is many times faster than an
    index in brackets."""
    return tensor_C.index_select(0, ids) if isinstance(ids, Tensor) else tensor_C[ids]


def put(tensor_C: Tensor, ids: slice | Tensor, values_n: Tensor) -> None:
    """Write back what `take` gave, in the tensor's dtype."""
    if isinstance(ids, Tensor):
        tensor_C.index_copy_(0, ids, values_n.to(tensor_C.dtype))
    elif tensor_C[ids].data_ptr() != values_n.data_ptr():
        tensor_C[ids] = values_n


def reciprocal_norms(rows_nD: Tensor) -> Tensor:
    """1 / |row|; 0 for rows of zeros, which stand for no class or a forgotten one."""
    norms_n: Tensor = torch.linalg.vector_norm(rows_nD, dim=1)
    return torch.where(norms_n > SHORTEST, norms_n.reciprocal(), 0)


class Gate:
    """A step's numbers as tensors on the device; where `open` is false they leave rows and state as
    they are.

    So a step is called off without the host waiting to hear of it. `position` names the step for
    stochastic rounding.
    """

    def __init__(self, open_: Tensor, lr: float, weight_decay: float, position: int) -> None:
        self.open, self.weight_decay, self.position = open_, weight_decay, position
        self.lr = torch.where(open_, torch.full((), lr, device=open_.device), 0)
        self.closed = (~open_).float()


class Rows(ABC):
    """Rows of classes [lo, hi) and their state; each tensor has one row more, which stands for no
    class.

    Rows of 16 bits are worked on in float32 and rounded up or down at random in proportion
    (stochastic rounding, arXiv 1502.02551), so that steps far below their spacing count (float16
    below 2^-14: to the nearest). The dice are a pure function of (seed, position, class,
    dimension).
    """

    by_class: ClassVar[tuple[str, ...]] = ("rows_CD",)
    """Attributes that hold something of each class, or None."""
    rows_CD: Tensor
    numbers_C: Tensor | None = None
    """Of copies (`staged`): the local numbers of their rows, int32."""

    def __init__(
        self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device
    ) -> None:
        self.config, self.seed, self.lo, self.num_rows, self.dtype = (
            config,
            seed,
            lo,
            hi - lo,
            DTYPES[config.dtype],
        )
        self._dice: tuple[int, Tensor] | None = None

    def take(self, ids: slice | Tensor) -> Tensor:
        """float32 [n, D]; a view where rows are float32 and `ids` a slice."""
        return take(self.rows_CD, ids).float()

    def inverse_norms(self, ids: slice | Tensor, rows_nD: Tensor | None = None) -> Tensor:
        """1 / |row|, float32 [n]; `rows_nD` is `take(ids)` where that is at hand."""
        return reciprocal_norms(self.take(ids) if rows_nD is None else rows_nD)

    def catch_up_(self, ids: slice | Tensor) -> None:
        """Called before a step scores these rows: does to them what earlier steps put off. Of rows
        that are no copies, a slice only where every step takes all."""
        return

    @abstractmethod
    def update_(
        self, ids: slice | Tensor, rows_nD: Tensor, inverse_n: Tensor, d_rows_nD: Tensor, gate: Gate
    ) -> None:
        """Step the rows `rows_nD = take(ids)`. `d_rows_nD` is their gradient but for its part along
        the row, which a cosine cannot feel and which is still in it; both tensors are used up."""

    def finish_(self, gate: Gate) -> None:
        """Called once at the end of each step."""
        return

    def settle_(self) -> None:
        """Do what steps put off, so that the tensors of the state alone say how to go on."""
        return

    @property
    def settles_next(self) -> bool:
        """The next `finish_` goes through all rows."""
        return False

    def share_on_(self, device: torch.device) -> None:
        """Keep what is of no single class on the device that steps copies of the rows."""
        return

    def staged(self, tensors: dict[str, Tensor], numbers_C: Tensor) -> "Rows":
        """Rows of this kind with other tensors by class: copies of the rows with these local
        numbers; the last stands for no class."""
        other = copy.copy(self)
        vars(other).update(tensors, numbers_C=numbers_C, num_rows=len(numbers_C) - 1, _dice=None)
        return other

    @abstractmethod
    def _state(self) -> dict[str, Tensor]: ...

    def tensors(self) -> dict[str, Tensor]:
        """The state itself, settled, not a copy, without the last row."""
        self.settle_()
        return {name: tensor[:-1] for name, tensor in self._state().items()}

    def rounded_(self) -> None:
        """Called after `tensors()` were filled from those of another dtype."""
        return

    def dice(self, position: int) -> tuple[int, Tensor]:
        """Bits of float32 that the rows' dtype drops, and random numbers of as many, int32 [128,
        D]: row i for classes i, i + 128 ..."""
        dropped, dim = _DROPPED_BITS.get(self.dtype, 0), self.rows_CD.shape[1]
        if self._dice is None or self._dice[0] != position:
            words = rng.words(
                rng.key(self.seed, position, _PURPOSE),
                np.arange(_DICE_ROWS * dim * (dropped > 0), dtype=np.uint64),
            )
            noise = (words >> np.uint64(64 - max(dropped, 1))).astype(np.int32)
            self._dice = position, sent(noise, self.rows_CD.device).view(-1, dim)
        return dropped, self._dice[1]

    def _put(self, ids: slice | Tensor, rows_nD: Tensor, position: int) -> None:
        """Write back rows, which are rounded in place."""
        self._round_(rows_nD, ids, position)
        put(self.rows_CD, ids, rows_nD)

    def _round_(self, rows_nD: Tensor, ids: slice | Tensor, position: int) -> None:
        """To numbers that the rows' dtype holds, in place: random bits are added below its last
        bit, and those bits cut off."""
        if self.dtype == torch.float32:
            return
        dropped, noise = self.dice(position)
        if self.numbers_C is not None:
            numbers_n = take(self.numbers_C, ids)
        else:
            numbers_n = (
                ids
                if isinstance(ids, Tensor)
                else torch.arange(ids.start, ids.stop, device=rows_nD.device)
            )
        bits_nD = rows_nD.view(torch.int32)  # sign and magnitude: both signs are rounded alike
        bits_nD.add_(noise.index_select(0, (numbers_n + self.lo) % _DICE_ROWS)).bitwise_and_(
            -(1 << dropped)
        )
