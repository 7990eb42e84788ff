"""Row optimisers: how the gradient moves class rows, each a class with its state.

Shapes: C this rank's classes, n a chunk of them, D the embedding.
"""

import math
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.models.head.rows import (
    INIT_BLOCK,
    Rows,
    StepMask,
    initial,
    put,
    reciprocal_norms,
    take,
)

LONGEST_HISTORY = 65_536
"""Steps after which `LazySGDRows` brings all rows up to date: its history takes 32 bytes a step and
is gone through in each."""
_FLUSHED_TOGETHER = 8 * INIT_BLOCK
_SMALLEST = 1e-15
"""Numbers are divided by no less than this: its square is still a float32."""


class SGDRows(Rows):
    """SGD with momentum that moves and decays a row only in steps that touch it: m <- mu m + (g +
    wd w); w <- w - lr m."""

    per_class: ClassVar[tuple[str, ...]] = ("rows_CD", "momentum_CD")

    def __init__(
        self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device
    ) -> None:
        super().__init__(config, seed, lo, hi, dim, device)
        self.rows_CD = initial(seed, lo, hi, dim, device, dtype=self.dtype)
        self.momentum_CD = torch.zeros(hi - lo + 1, dim, device=device) if config.momentum else None

    def _update_(
        self,
        ids: slice | Tensor,
        rows_nD: Tensor,
        inverse_norms_n: Tensor,
        d_rows_nD: Tensor,
        mask: StepMask,
    ) -> None:
        momenta = [] if self.momentum_CD is None else [take(self.momentum_CD, ids)]
        _make_tangential_(d_rows_nD, rows_nD, inverse_norms_n)
        # torch.optim.SGD(fused=True)'s own step: one pass over all three tensors, and none where
        # the step is skipped.
        torch._fused_sgd_(
            [rows_nD],
            [d_rows_nD],
            momenta,
            weight_decay=mask.weight_decay,
            momentum=self.config.momentum,
            lr=mask.lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=mask.skipped,
        )
        if self.momentum_CD is not None:
            put(self.momentum_CD, ids, momenta[0])
        self._put(ids, rows_nD, mask.position)

    def _state(self) -> dict[str, Tensor]:
        return {"rows": self.rows_CD} | (
            {} if self.momentum_CD is None else {"momentum": self.momentum_CD}
        )


class LazySGDRows(SGDRows):
    """torch.optim.SGD on the dense [C, D] matrix, with a gradient of zero for rows that a step
    leaves out, at the cost of the others.

    A step without a gradient, m <- mu m + wd w and w <- w - lr m, maps (w, m) by a matrix A_t = [[1
    - lr wd, -lr mu], [wd, mu]] that is the same for all rows. So a row that steps a to t - 1 left
    out is brought up to date at once by S_a = A_{t-1} ... A_a. `maps_2H2` holds S_a for each a,
    float64: its two columns are what those steps make of (w, m) = (1, 0) and of (0, 1), worked out
    by the step itself. Steps are counted from when all rows were last brought up to date
    (`flush_`), which rounds: runs that do so at other steps differ in the last bits. A step that
    was called off is the identity. Rows of zeros without momentum stay zero.
    """

    per_class = (*SGDRows.per_class, "next_C")

    def __init__(
        self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device
    ) -> None:
        super().__init__(config, seed, lo, hi, dim, device)
        self.next_C = torch.zeros(hi - lo + 1, dtype=torch.int32, device=device)
        """int32: the first step that is not in the row yet."""
        self.maps_2H2 = torch.empty(2, LONGEST_HISTORY + 1, 2, dtype=torch.float64, device=device)
        self.num_steps = 0
        self.position = 0
        """Position of the step before."""
        self._forget_history()

    def catch_up_(self, ids: slice | Tensor) -> None:
        # Otherwise this step takes all rows, like all steps before: nothing is to be caught up.
        if isinstance(ids, Tensor) or self.local_ids_C is not None:
            self._apply_history(ids, self.maps_2H2)
        # This step's update is either made or the identity.
        if isinstance(ids, Tensor):
            self.next_C.index_fill_(0, ids, self.num_steps + 1)
        else:
            self.next_C[ids] = self.num_steps + 1

    def finish_step_(self, mask: StepMask) -> None:
        w_H2, m_H2 = self.maps_2H2[:, : self.num_steps + 1]
        m_H2.copy_(
            torch.where(mask.applied, self.config.momentum * m_H2 + mask.weight_decay * w_H2, m_H2)
        )
        w_H2.sub_(mask.lr * m_H2)
        self.num_steps, self.position = self.num_steps + 1, mask.position
        if self.num_steps == LONGEST_HISTORY:
            self.flush_()

    @property
    def flushes_next(self) -> bool:
        return self.num_steps + 1 == LONGEST_HISTORY

    def move_shared_(self, device: torch.device) -> None:
        self.maps_2H2 = self.maps_2H2.to(device)

    def flush_(self) -> None:
        if self.num_steps:
            maps_2H2 = self.maps_2H2.to(self.rows_CD.device)
            for start in range(0, self.num_rows, _FLUSHED_TOGETHER):
                self._apply_history(
                    slice(start, min(start + _FLUSHED_TOGETHER, self.num_rows)), maps_2H2
                )
            self._forget_history()

    def _forget_history(self) -> None:
        self.num_steps = 0
        self.next_C.zero_()
        self.maps_2H2.zero_()
        self.maps_2H2[0, :, 0] = self.maps_2H2[1, :, 1] = 1

    def _apply_history(self, ids: slice | Tensor, maps_2H2: Tensor) -> None:
        self.tell_change(ids)
        w_n2, m_n2 = (
            part_H2.index_select(0, take(self.next_C, ids)).float() for part_H2 in maps_2H2
        )
        before_nD = self.take(ids)
        rows_nD = before_nD * w_n2[:, :1]
        if self.momentum_CD is not None:
            momenta_nD = take(self.momentum_CD, ids)
            rows_nD.addcmul_(momenta_nD, w_n2[:, 1:])
            put(
                self.momentum_CD, ids, momenta_nD.mul_(m_n2[:, 1:]).addcmul_(before_nD, m_n2[:, :1])
            )
        # Rounded by the noise of the step before: the rows that have met it are the ones which that
        # step updated, and they stay as they are.
        self._put(ids, rows_nD, self.position)


class RowwiseRows(Rows):
    """Unit rows and two float32 numbers a row: at D = 512 in float16, 1,032 bytes a class.

    `lengths_C` is the length that a row under plain SGD would have: w = length x unit row takes
    that step, with weight decay and without a momentum vector, but at lr / (1 - momentum), the
    distance over which momentum carries each gradient in the end. The gradient is tangential, so
    the new length is known from the step's: sqrt((length (1 - lr wd))^2 + (lr |g| / length)^2).
    `inverse_norms_C` is 1 / |row as stored|: rounding leaves it near 1, and the passes need it
    exact.
    """

    per_class = ("rows_CD", "lengths_C", "inverse_norms_C")

    def __init__(
        self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device
    ) -> None:
        super().__init__(config, seed, lo, hi, dim, device)
        self.rows_CD = initial(seed, lo, hi, dim, device, unit=True, dtype=self.dtype)
        self.lengths_C = torch.ones(hi - lo + 1, device=device)
        self.inverse_norms_C = torch.empty(hi - lo + 1, device=device)
        self.refresh_norms_()

    def refresh_norms_(self) -> None:
        for start in range(0, len(self.rows_CD), 8 * INIT_BLOCK):
            part = slice(start, start + 8 * INIT_BLOCK)
            self.inverse_norms_C[part] = reciprocal_norms(self.rows_CD[part].float())

    def inverse_norms(self, ids: slice | Tensor, rows_nD: Tensor | None = None) -> Tensor:
        return take(self.inverse_norms_C, ids)

    def _update_(
        self,
        ids: slice | Tensor,
        rows_nD: Tensor,
        inverse_norms_n: Tensor,
        d_rows_nD: Tensor,
        mask: StepMask,
    ) -> None:
        lr = mask.lr / (1 - self.config.momentum)
        length_n = take(self.lengths_C, ids)
        dots_n = _dots(d_rows_nD, rows_nD)
        # The length of the gradient at w without its part along the row; 0 where there is no row.
        scaled_n = (inverse_norms_n * length_n).clamp_(min=_SMALLEST)
        slope_n = (_dots(d_rows_nD, d_rows_nD) - (dots_n * inverse_norms_n).square()).clamp_(
            min=0
        ).sqrt_() / scaled_n
        decayed_n = length_n * (1 - lr * mask.weight_decay)
        longer_n = torch.hypot(decayed_n, lr * slope_n)
        per_length_n = 1 / longer_n.clamp(min=_SMALLEST)
        step_n, radial_n = lr * per_length_n / scaled_n, dots_n * inverse_norms_n.square()
        keep_n = torch.where(
            mask.applied, decayed_n * per_length_n * inverse_norms_n + step_n * radial_n, 1
        )
        rows_nD.mul_(keep_n[:, None]).addcmul_(d_rows_nD, -step_n[:, None])
        self._put(ids, rows_nD, mask.position)
        put(self.lengths_C, ids, longer_n)
        put(self.inverse_norms_C, ids, reciprocal_norms(rows_nD))

    def _state(self) -> dict[str, Tensor]:
        return {
            "rows": self.rows_CD,
            "lengths": self.lengths_C,
            "inverse_norms": self.inverse_norms_C,
        }


class AdamWRows(Rows):
    """AdamW (arXiv 1711.05101) that moves and decays a row only in steps that touch it. Biases are
    corrected by the row's own steps.

    w <- w (1 - lr wd); m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; w <- w - lr (m / (1 -
    b1^k)) / (sqrt(v / (1 - b2^k)) + eps) in the k-th step of a row. All state is float32.
    """

    per_class = ("rows_CD", "exp_avg_CD", "exp_avg_sq_CD", "steps_C")

    def __init__(
        self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device
    ) -> None:
        super().__init__(config, seed, lo, hi, dim, device)
        self.rows_CD = initial(seed, lo, hi, dim, device, dtype=self.dtype)
        self.exp_avg_CD, self.exp_avg_sq_CD = (
            torch.zeros(hi - lo + 1, dim, device=device) for _ in range(2)
        )
        self.steps_C = torch.zeros(hi - lo + 1, device=device)

    def _update_(
        self,
        ids: slice | Tensor,
        rows_nD: Tensor,
        inverse_norms_n: Tensor,
        d_rows_nD: Tensor,
        mask: StepMask,
    ) -> None:
        exp_avg_nD, exp_avg_sq_nD = take(self.exp_avg_CD, ids), take(self.exp_avg_sq_CD, ids)
        steps_n = take(self.steps_C, ids) + 1
        # 1 - b^k; by expm1, as 1 - 0.999 has four digits in float32. b = 0 gives 1.
        unbias1_n, unbias2_n = (
            -torch.expm1(steps_n * (math.log(beta) if beta else -math.inf))
            for beta in self.config.betas
        )
        applied = mask.applied.float()
        _make_tangential_(d_rows_nD, rows_nD, inverse_norms_n)
        exp_avg_nD.lerp_(d_rows_nD, applied * (1 - self.config.betas[0]))
        exp_avg_sq_nD.lerp_(d_rows_nD.square_(), applied * (1 - self.config.betas[1]))
        step_nD = (
            torch.sqrt(exp_avg_sq_nD, out=d_rows_nD)
            .mul_(unbias2_n.rsqrt()[:, None])
            .add_(self.config.eps)
        )
        torch.div(exp_avg_nD, step_nD, out=step_nD)
        rows_nD.mul_(1 - mask.lr * mask.weight_decay).addcmul_(
            step_nD, (-mask.lr / unbias1_n)[:, None]
        )
        put(self.exp_avg_CD, ids, exp_avg_nD)
        put(self.exp_avg_sq_CD, ids, exp_avg_sq_nD)
        # What is no class has the inverse norm 0, and takes no steps.
        took_step_n = mask.applied & (inverse_norms_n > 0)
        put(self.steps_C, ids, torch.where(took_step_n, steps_n, steps_n - 1))
        self._put(ids, rows_nD, mask.position)

    def _state(self) -> dict[str, Tensor]:
        return {
            "rows": self.rows_CD,
            "exp_avg": self.exp_avg_CD,
            "exp_avg_sq": self.exp_avg_sq_CD,
            "steps": self.steps_C,
        }


def _make_tangential_(d_rows_nD: Tensor, rows_nD: Tensor, inverse_norms_n: Tensor) -> None:
    """Take off each gradient's part along its row."""
    d_rows_nD.addcmul_(rows_nD, (-_dots(d_rows_nD, rows_nD) * inverse_norms_n.square())[:, None])


def _dots(left_nD: Tensor, right_nD: Tensor) -> Tensor:
    dots_n: Tensor = torch.linalg.vecdot(left_nD, right_nD)
    return dots_n


class Build(Protocol):
    def __call__(
        self, config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device
    ) -> Rows: ...


def build(config: schema.Rows, seed: int, lo: int, hi: int, dim: int, device: torch.device) -> Rows:
    """Rows with the optimiser that a configuration names."""
    sgd: Build = LazySGDRows if config.lazy_decay else SGDRows
    make: Build = {"sgd": sgd, "rowwise": RowwiseRows, "adamw": AdamWRows}[config.optimizer]
    return make(config, seed, lo, hi, dim, device)
