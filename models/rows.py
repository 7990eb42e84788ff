"""Class rows (centres), their momentum, and their update.

Shapes: C this rank's classes, n a chunk of them, B the global batch, D the embedding.
"""

import torch
from torch import Tensor

from manyfaces.configs import counter
from manyfaces.configs.schema import UserError

INIT_BLOCK = 1024
"""Classes drawn from one generator."""
_INIT_STD = 0.01


def initial(seed: int, lo: int, hi: int, dim: int, device: torch.device) -> Tensor:
    """Rows of classes [lo, hi), float32 [hi - lo, D], normal with standard deviation 0.01; each depends on its id and the seed only."""
    rows_CD = torch.empty(hi - lo, dim, device=device)
    for block in range(lo // INIT_BLOCK, -(-hi // INIT_BLOCK) if hi > lo else 0):
        # torch's CPU generator keeps 32 bits of its seed. Counting up from a mixed seed, no two blocks share them; mixed block by block,
        # some pair of the 100,000 blocks of 100 million classes would, and their classes would start as twins.
        generator = torch.Generator().manual_seed((counter.key(seed, INIT_BLOCK) + block) % 2**32)
        drawn_nD = torch.randn(INIT_BLOCK, dim, generator=generator).mul_(_INIT_STD)
        first = block * INIT_BLOCK
        start, stop = max(lo, first), min(hi, first + INIT_BLOCK)
        rows_CD[start - lo : stop - lo] = drawn_nD[start - first : stop - first]
    return rows_CD


def take(rows_CD: Tensor, ids: slice | Tensor) -> Tensor:
    """A view of a slice, or a copy of rows by number; index_select is many times faster than an index in brackets."""
    return rows_CD.index_select(0, ids) if isinstance(ids, Tensor) else rows_CD[ids]


class Gate:
    """SGD's numbers for one step as tensors on the device; all of them leave rows and momentum as they are where `open` is false.

    So a step is called off without the host waiting to hear of it, and an allowed one pays nothing for the question.
    """

    def __init__(self, open_: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        def where(yes: float, no: float) -> Tensor:
            return torch.where(open_, torch.full((), yes, device=open_.device), no)

        self.minus_lr, self.momentum, self.weight_decay = where(-lr, 0), where(momentum, 1), where(weight_decay, 0)


class Rows:
    """Rows and momentum of classes [lo, hi), float32 [C, D]: SGD with momentum that moves and decays a row only in steps that touch it."""

    def __init__(self, seed: int, lo: int, hi: int, dim: int, device: torch.device) -> None:
        self.rows_CD = initial(seed, lo, hi, dim, device)
        self.momentum_CD = torch.zeros_like(self.rows_CD)

    def update_(self, ids: slice | Tensor, rows_nD: Tensor, d_logits_nB: Tensor, unit_BD: Tensor, radial_n: Tensor, gate: Gate) -> None:
        """m <- mu m + (g + wd w); w <- w - lr m, for rows `rows_nD = take(rows_CD, ids)` with g = d_logits_nB @ unit_BD - radial_n w.

        The gradient goes straight into the momentum: it never stands alone, not even for a chunk.
        """
        momentum_nD = take(self.momentum_CD, ids)
        momentum_nD.mul_(gate.momentum).addmm_(d_logits_nB, unit_BD).addcmul_(rows_nD, (gate.weight_decay - radial_n)[:, None])
        rows_nD.addcmul_(momentum_nD, gate.minus_lr)
        if isinstance(ids, Tensor):  # copies then, where slices are views
            self.momentum_CD.index_copy_(0, ids, momentum_nD)
            self.rows_CD.index_copy_(0, ids, rows_nD)

    def tensors(self) -> dict[str, Tensor]:
        """The state itself, not a copy."""
        return {"rows": self.rows_CD, "momentum": self.momentum_CD}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy a state in. Raises `UserError` where names or shapes are others."""
        for name, mine in self.tensors().items():
            if name not in tensors or tensors[name].shape != mine.shape:
                found = tuple(tensors[name].shape) if name in tensors else "nothing"
                raise UserError(f"head state {name!r}: found {found}, need {tuple(mine.shape)}: other classes, ranks or embedding_dim?")
            mine.copy_(tensors[name])
