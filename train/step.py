"""One training step: the inner loop, from uint8 images to updated weights and class rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from manyfaces.configs import rng
from manyfaces.data.feed.loader import Batch
from manyfaces.train.engine import Engine, NotFiniteError
from manyfaces.train.objectives.objective import Forward, Moment, Objective


@dataclass(frozen=True)
class StepResult:
    """What the loop learns of a step."""

    loss: Tensor
    """Mean over the valid samples of the global batch; on the device."""
    grad_norm: float
    """Norm of the network's gradient before clipping."""
    last: bool
    """Some rank can make no further step, or wants a checkpoint behind this one."""
    metrics: Mapping[str, Tensor]
    """Further numbers of the objective, by name; on the device."""


def train_step(
    engine: Engine, objective: Objective, batch: Batch, moment: Moment, *, seed: int, rank: int
) -> StepResult:
    """Raises `NotFiniteError` on every rank alike; then nothing of this step may be kept."""
    torch.manual_seed(rng.key(seed, rng.Stream.NETWORK_STEP, moment.position, rank) >> 1)
    objective.prefetch(moment)
    loss = objective.loss(Forward(engine.run, batch.images), batch, moment)
    engine.backward(loss.surrogate)
    grad_norm = engine.step(moment.lr)
    objective.after_step(engine.module, moment)
    if not bool(loss.finite):
        raise NotFiniteError(f"loss {float(loss.value)}")
    for what, is_so in loss.checks.items():
        assert bool(is_so), what
    last = loss.last if objective.tells_last else _anywhere(loss.last)
    return StepResult(loss.value, grad_norm, bool(last), loss.metrics)


def _anywhere(last: Tensor) -> Tensor:
    """Whether it is true on any rank. Collective."""
    count = last.to(torch.int32)
    dist.all_reduce(count)
    return count > 0
