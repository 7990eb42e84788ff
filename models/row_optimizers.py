"""How the gradient moves class rows: one class an optimiser, each with its state.

Shapes: C this rank's classes, n a chunk of them, D the embedding.
"""

from typing import Protocol

import torch
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.models.rows import INIT_BLOCK, Gate, Rows, initial, put, reciprocal_norms, take

_SMALLEST = 1e-15
"""Numbers are divided by no less than this: its square is still a float32."""


class SGDRows(Rows):
    """SGD with momentum that moves and decays a row only in steps that touch it: m <- mu m + (g + wd w); w <- w - lr m."""

    def __init__(self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device) -> None:
        super().__init__(config, seed, lo, hi, dim, device)
        self.rows_CD = initial(seed, lo, hi, dim, device, dtype=self.dtype)
        self.momentum_CD = torch.zeros(hi - lo + 1, dim, device=device) if config.momentum else None

    def update_(self, ids: slice | Tensor, rows_nD: Tensor, inverse_n: Tensor, d_rows_nD: Tensor, gate: Gate) -> None:
        momenta = [] if self.momentum_CD is None else [take(self.momentum_CD, ids)]
        _make_tangential_(d_rows_nD, rows_nD, inverse_n)
        # torch.optim.SGD(fused=True)'s own step: one pass over all three, and none where the gate is closed.
        torch._fused_sgd_(
            [rows_nD], [d_rows_nD], momenta, weight_decay=gate.weight_decay, momentum=self.config.momentum, lr=gate.lr,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False, found_inf=gate.closed,
        )  # fmt: skip
        if self.momentum_CD is not None:
            put(self.momentum_CD, ids, momenta[0])
        self._put(ids, rows_nD, gate.position)

    def _state(self) -> dict[str, Tensor]:
        return {"rows": self.rows_CD} | ({} if self.momentum_CD is None else {"momentum": self.momentum_CD})


class RowwiseRows(Rows):
    """Unit rows and two float32 numbers a row: at D = 512 in float16, 1,032 bytes a class.

    `lengths_C` is the length that a row under plain SGD would have: w = length x unit row takes that step, with weight decay and without a
    momentum vector, but at lr / (1 - momentum), the distance over which momentum carries each gradient in the end. The gradient is
    tangential, so the new length is known from the step's: sqrt((length (1 - lr wd))^2 + (lr |g| / length)^2).
    `inverse_norms_C` is 1 / |row as stored|: rounding leaves it near 1, and the walks need it exact.
    """

    def __init__(self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device) -> None:
        super().__init__(config, seed, lo, hi, dim, device)
        self.rows_CD = initial(seed, lo, hi, dim, device, unit=True, dtype=self.dtype)
        self.lengths_C = torch.ones(hi - lo + 1, device=device)
        self.inverse_norms_C = torch.cat([reciprocal_norms(part_nD.float()) for part_nD in torch.split(self.rows_CD, 8 * INIT_BLOCK)])

    def inverse_norms(self, ids: slice | Tensor, rows_nD: Tensor | None = None) -> Tensor:
        return take(self.inverse_norms_C, ids)

    def update_(self, ids: slice | Tensor, rows_nD: Tensor, inverse_n: Tensor, d_rows_nD: Tensor, gate: Gate) -> None:
        lr = gate.lr / (1 - self.config.momentum)
        length_n = take(self.lengths_C, ids)
        dots_n = _dots(d_rows_nD, rows_nD)
        # Of the gradient at w without its part along the row; 0 where there is no row.
        scaled_n = (inverse_n * length_n).clamp_(min=_SMALLEST)
        slope_n = (_dots(d_rows_nD, d_rows_nD) - (dots_n * inverse_n).square()).clamp_(min=0).sqrt_() / scaled_n
        decayed_n = length_n * (1 - lr * gate.weight_decay)
        longer_n = torch.hypot(decayed_n, lr * slope_n)
        per_length_n = 1 / longer_n.clamp(min=_SMALLEST)
        step_n, radial_n = lr * per_length_n / scaled_n, dots_n * inverse_n.square()
        keep_n = torch.where(gate.open, decayed_n * per_length_n * inverse_n + step_n * radial_n, 1)
        rows_nD.mul_(keep_n[:, None]).addcmul_(d_rows_nD, -step_n[:, None])
        self._put(ids, rows_nD, gate.position)
        put(self.lengths_C, ids, longer_n)
        put(self.inverse_norms_C, ids, reciprocal_norms(rows_nD))

    def _state(self) -> dict[str, Tensor]:
        return {"rows": self.rows_CD, "lengths": self.lengths_C, "inverse_norms": self.inverse_norms_C}


def _make_tangential_(d_rows_nD: Tensor, rows_nD: Tensor, inverse_n: Tensor) -> None:
    """Take off each gradient's part along its row."""
    d_rows_nD.addcmul_(rows_nD, (-_dots(d_rows_nD, rows_nD) * inverse_n.square())[:, None])


def _dots(left_nD: Tensor, right_nD: Tensor) -> Tensor:
    dots_n: Tensor = torch.linalg.vecdot(left_nD, right_nD)
    return dots_n


class Build(Protocol):
    def __call__(self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device) -> Rows: ...


def build(config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device) -> Rows:
    """The rows that a configuration names."""
    make: Build = {"sgd": SGDRows, "rowwise": RowwiseRows}[config.optimizer]
    return make(config, seed, lo, hi, dim, device)
