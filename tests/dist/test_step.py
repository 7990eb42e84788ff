"""A step tells all ranks that one of them can make no further one, whatever the objective does."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launcher import run_ranks

from manyfaces.cluster.world import World
from manyfaces.train.engine import NotFiniteError
from manyfaces.train.objectives.objective import Loss, Moment, Objective
from manyfaces.train.step import pass_over, train_step


class Own(Objective):
    """As people write them: `last` is this rank's own, and so is whether the loss is finite."""

    def loss(self, forward: Any, batch: Any, moment: Moment) -> Loss:
        value = torch.tensor(float("nan") if batch.images else 1.0)
        return Loss(value, value, value.isfinite(), torch.tensor(moment.last))


ENGINE: Any = SimpleNamespace(
    run=None, module=None, backward=lambda loss: None, step=lambda lr: 0.0
)


def not_finite_of_a_rank() -> bool:
    """A gradient may be finite where the loss is not: the engine does not tell the others then."""
    rank = World.current().rank
    batch: Any = SimpleNamespace(images={"main": None} if rank == 1 else {})
    with pytest.raises(NotFiniteError):
        train_step(ENGINE, Own(), batch, Moment(0, 2, 0.1), seed=0, rank=rank)
    return pass_over(Moment(0, 2, 0.1, last=rank == 1), torch.device("cpu"))


def test_the_loss_of_one_rank_that_is_not_finite_stops_all() -> None:
    assert run_ranks(2, not_finite_of_a_rank, timeout_s=100) == [True, True]


def steps_of_a_rank() -> list[bool]:
    batch: Any = SimpleNamespace(images={})
    rank = World.current().rank
    moments = [Moment(0, 2, 0.1, last=False), Moment(2, 2, 0.1, last=rank == 1)]
    return [train_step(ENGINE, Own(), batch, each, seed=0, rank=rank).last for each in moments]


def test_the_last_step_of_one_rank_is_that_of_all() -> None:
    assert run_ranks(2, steps_of_a_rank, timeout_s=100) == [[False, True], [False, True]]
