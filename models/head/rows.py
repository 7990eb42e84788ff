"""Class rows (centres): their first values, and how they are taken and put back in 16 or 32 bits.
`row_optimizers.py` updates them.

Shapes: C this rank's classes, n a chunk of them, D the embedding.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from manyfaces.configs import rng, schema
from manyfaces.models.head import devices
from manyfaces.models.head.float8 import FLOAT8, SMALLEST_NORMAL, bits, to_float32

INIT_BLOCK = 1024
"""Classes drawn from one generator."""
_INIT_STD = 0.01
SHORTEST = 1e-12
"""Vectors are divided by no less than this."""
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": FLOAT8,
}
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13, FLOAT8: 20}
_NOISE_ROWS = 128

BeforeChange = Callable[[slice | Tensor], None]
"""What is told the local ids of rows whose state is about to change in place, in the thread that
changes it; one past the last row may be among them."""


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
    """First values of the rows of classes [lo, hi), and a row of zeros behind them, [hi - lo + 1,
    D]. Each row depends on its class id and the seed only.

    They are normal with standard deviation 0.01, or with `unit` scaled to length 1.
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


def take(tensor_C: Tensor, ids: slice | Tensor) -> Tensor:
    """A view of a slice, or a copy of rows by number; index_select is many times faster than an
    index in brackets."""
    return tensor_C.index_select(0, ids) if isinstance(ids, Tensor) else tensor_C[ids]


def put(tensor_C: Tensor, ids: slice | Tensor, values_n: Tensor) -> None:
    """Write back what `take` gave, in the tensor's dtype."""
    if isinstance(ids, Tensor):
        bits(tensor_C).index_copy_(0, ids, bits(values_n.to(tensor_C.dtype)))
    elif tensor_C[ids].data_ptr() != values_n.data_ptr():
        tensor_C[ids] = values_n


def reciprocal_norms(rows_nD: Tensor) -> Tensor:
    """1 / |row|; 0 for rows of zeros, which stand for no class or a forgotten one."""
    norms_n: Tensor = torch.linalg.vector_norm(rows_nD, dim=1)
    return torch.where(norms_n > SHORTEST, norms_n.reciprocal(), 0)


class StepMask:
    """Whether a step is applied, and its numbers, as tensors on the device: where `applied` (bool
    []) is false they leave rows and state as they are.

    So a step is called off without the host waiting to hear of it. `lr` is float32 [], 0 where the
    step is not applied; `skipped` is `applied`'s opposite in float32; `position` names the step for
    stochastic rounding.
    """

    def __init__(self, applied: Tensor, lr: float, weight_decay: float, position: int) -> None:
        self.applied, self.weight_decay, self.position = applied, weight_decay, position
        self.lr = torch.where(applied, torch.full((), lr, device=applied.device), 0)
        self.skipped = (~applied).float()


class Rows(ABC):
    """Rows of classes [lo, hi) and their state; each tensor has one row more, which stands for no
    class.

    Rows of 16 or 8 bits are worked on in float32 and rounded up or down at random in proportion
    (stochastic rounding, arXiv 1502.02551), so that steps far below their spacing count (float16
    below 2^-14: to the nearest). The rounding noise is a pure function of (seed, position, class,
    dimension). 8 bits (ELMO, arXiv 2510.11168) are for unit rows: their numbers are at most 1, far
    below the largest, 448.
    """

    per_class: ClassVar[tuple[str, ...]] = ("rows_CD",)
    """Names of the attributes that hold something of each class, or None."""
    rows_CD: Tensor
    local_ids_C: Tensor | None = None
    """int32: where these are copies (`staged_copy`), the local ids of the rows that they copy."""
    before_change: BeforeChange | None = None
    """Called before every change of the state, except when it is filled from a checkpoint or by
    `refresh_norms_` before the first step."""

    def __init__(
        self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device
    ) -> None:
        self.config, self.seed, self.lo, self.num_rows = config, seed, lo, hi - lo
        self.dtype = DTYPES[config.dtype]
        self._noise: tuple[int, Tensor] | None = None
        """The position of the last step that asked for rounding noise, and the noise."""

    def take(self, ids: slice | Tensor) -> Tensor:
        """Rows in float32 [n, D]; a view where rows are float32 and `ids` a slice."""
        return to_float32(take(self.rows_CD, ids))

    def inverse_norms(self, ids: slice | Tensor, rows_nD: Tensor | None = None) -> Tensor:
        """1 / |row|, float32 [n]; `rows_nD` is `take(ids)` where that is at hand."""
        return reciprocal_norms(self.take(ids) if rows_nD is None else rows_nD)

    def catch_up_(self, ids: slice | Tensor) -> None:
        """Apply to these rows what earlier steps put off; called before a step scores them. Unless
        these are copies, `ids` is a slice only where every step takes all rows."""
        return

    def tell_change(self, ids: slice | Tensor) -> None:
        """Tell whoever wants to know that these rows are about to change."""
        told = self.before_change
        if told is not None:
            told(ids)

    def update_(
        self,
        ids: slice | Tensor,
        rows_nD: Tensor,
        inverse_norms_n: Tensor,
        d_rows_nD: Tensor,
        mask: StepMask,
    ) -> None:
        """Update the rows `rows_nD = take(ids)`. `d_rows_nD` is their gradient but for its part
        along the row, which a cosine does not depend on and which is still in it; both tensors are
        overwritten."""
        self.tell_change(ids)
        self._update_(ids, rows_nD, inverse_norms_n, d_rows_nD, mask)

    @abstractmethod
    def _update_(
        self,
        ids: slice | Tensor,
        rows_nD: Tensor,
        inverse_norms_n: Tensor,
        d_rows_nD: Tensor,
        mask: StepMask,
    ) -> None:
        """What `update_` does, for an optimiser to say."""

    def finish_step_(self, mask: StepMask) -> None:
        """Called once at the end of each step."""
        return

    def flush_(self) -> None:
        """Apply to all rows what steps put off, so that the tensors of the state alone say how to
        go on."""
        return

    @property
    def flushes_next(self) -> bool:
        """Whether the next `finish_step_` goes through all rows."""
        return False

    def move_shared_(self, device: torch.device) -> None:
        """Keep what all classes share on the device that updates copies of the rows."""
        return

    def staged_copy(self, tensors: dict[str, Tensor], local_ids_C: Tensor) -> Self:
        """Rows of this kind that hold other tensors per class: copies of the rows with these local
        ids (int32), of which the last stands for no class."""
        other = copy.copy(self)
        num_rows = len(local_ids_C) - 1
        vars(other).update(
            tensors, local_ids_C=local_ids_C, num_rows=num_rows, before_change=None, _noise=None
        )
        return other

    @abstractmethod
    def _state(self) -> dict[str, Tensor]:
        """All tensors of the state by the names that checkpoints have for them."""

    def tensors(self) -> dict[str, Tensor]:
        """The state itself, not a copy, with all that steps put off, without the last row."""
        self.flush_()
        return {name: tensor[:-1] for name, tensor in self._state().items()}

    def refresh_norms_(self) -> None:
        """Compute anew what the state keeps of the stored rows' norms; called after `tensors()`
        were filled from those of another dtype."""
        return

    def rounding_noise(self, position: int) -> tuple[int, Tensor]:
        """How many bits of float32 the rows' dtype drops, and random numbers of as many bits, int32
        [128, D]: row i is for the classes i, i + 128 and so on."""
        dropped, dim = _DROPPED_BITS.get(self.dtype, 0), self.rows_CD.shape[1]
        if self._noise is None or self._noise[0] != position:
            words = rng.words(
                rng.key(self.seed, position, rng.Stream.HEAD_ROUNDING),
                np.arange(_NOISE_ROWS * dim * (dropped > 0), dtype=np.uint64),
            )
            noise = (words >> np.uint64(64 - max(dropped, 1))).astype(np.int32)
            self._noise = position, devices.to_device(noise, self.rows_CD.device).view(-1, dim)
        return dropped, self._noise[1]

    def _put(self, ids: slice | Tensor, rows_nD: Tensor, position: int) -> None:
        """Write back rows, which are rounded in place."""
        self._round_(rows_nD, ids, position)
        put(self.rows_CD, ids, rows_nD)

    def _round_(self, rows_nD: Tensor, ids: slice | Tensor, position: int) -> None:
        """Round in place to numbers that the rows' dtype holds: random bits are added below its
        last bit, and those bits cut off."""
        if self.dtype == torch.float32:
            return
        dropped, noise = self.rounding_noise(position)
        if self.local_ids_C is not None:
            local_ids_n = take(self.local_ids_C, ids)
        elif isinstance(ids, Tensor):
            local_ids_n = ids
        else:
            local_ids_n = torch.arange(ids.start, ids.stop, device=rows_nD.device)
        noise_nD = noise.index_select(0, (local_ids_n + self.lo) % _NOISE_ROWS)
        # Below its normal numbers float8's spacing stays as it is, where float32's goes on to
        # shrink: shifted to the smallest normal ones, numbers have the same spacing in both.
        shift_nD = None
        if self.dtype == FLOAT8:
            shift_nD = (rows_nD.abs() < SMALLEST_NORMAL) * SMALLEST_NORMAL
            shift_nD.copysign_(rows_nD)
            rows_nD.add_(shift_nD)
        # Sign and magnitude: both signs are rounded alike.
        rows_nD.view(torch.int32).add_(noise_nD).bitwise_and_(-(1 << dropped))
        if shift_nD is not None:
            rows_nD.sub_(shift_nD)
