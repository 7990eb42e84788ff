"""One training step: the inner loop, from uint8 images to updated weights and class rows."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from manyfaces.configs import rng
from manyfaces.data.feed.loader import Batch
from manyfaces.models.backbones.output import Output
from manyfaces.train.engine import Engine, NotFiniteError
from manyfaces.train.gradient_cache import GradientCache
from manyfaces.train.objectives.objective import Forward, Loss, Moment, Objective
from manyfaces.train.part_times import PartTimes


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
    engine: Engine,
    objective: Objective,
    batch: Batch,
    moment: Moment,
    *,
    seed: int,
    rank: int,
    num_micro_batches: int = 1,
    times: PartTimes | None = None,
) -> StepResult:
    """Make one step. `times` counts its parts.

    With several micro-batches the step is gradient caching (`gradient_cache.py`), and `UserError`
    is raised where the network or the objective does not go with them. Raises `NotFiniteError` on
    every rank alike; then nothing of this step may be kept.
    """
    times = times or PartTimes(torch.device("cpu"))

    def draw(*numbers: int) -> None:
        key = rng.key(seed, rng.Stream.NETWORK_STEP, moment.position, rank, *numbers)
        torch.manual_seed(key >> 1)

    def run(images_NHWC: Tensor) -> Output:
        with times.part("forward"):
            return engine.run(images_NHWC)

    draw()
    cache = None
    if num_micro_batches > 1:
        cache = GradientCache(engine, run, draw, num_micro_batches)
    forward = Forward(
        cache.run if cache else run,
        batch.images,
        num_micro_batches,
        lambda images_NHWC: engine.trial(images_NHWC),
    )
    with times.part("head"):
        objective.prefetch(forward, batch, moment)
        loss = objective.loss(forward, batch, moment)
    with times.part("backward"):
        if cache is None:
            engine.backward(loss.surrogate)
        else:
            cache.backward(loss.surrogate)
    with times.part("optimizer"):
        result = _updated(engine, objective, moment, loss)
    if cache is not None:
        cache.check()
    return result


def _updated(engine: Engine, objective: Objective, moment: Moment, loss: Loss) -> StepResult:
    """Let the network take its step, and wait for the device."""
    try:
        grad_norm = engine.step(moment.lr)
    except NotFiniteError as error:
        raise NotFiniteError(f"loss {float(loss.value)}, {error}") from error
    for average in objective.moving_averages(moment):
        engine.average(average.into, average.of, average.momentum)
    objective.after_step(engine.module, moment)
    last, finite = loss.last, loss.finite
    if not objective.tells_last:
        last, broken = _anywhere(torch.stack([last.to(finite.device), ~finite]))
        finite = ~broken
    if not bool(finite):
        raise NotFiniteError(f"loss {float(loss.value)}")
    for what, is_so in loss.checks.items():
        assert bool(is_so), what
    return StepResult(loss.value, grad_norm, bool(last), loss.metrics)


def pass_over(moment: Moment, device: torch.device) -> bool:
    """Make no step of this batch, and tell all ranks what a step would have told: whether one of
    them can make no further one, or wants a checkpoint. Collective."""
    return bool(_anywhere(torch.tensor(moment.last, device=device)))


def _anywhere(flags: Tensor) -> Tensor:
    """Which of them are true on any rank. Collective."""
    count = flags.to(torch.int32)
    dist.all_reduce(count)
    return count > 0
