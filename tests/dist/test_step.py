"""A step tells all ranks that one of them can make no further one, whatever the objective does."""

from types import SimpleNamespace
from typing import Any

import torch
from launcher import run_ranks

from manyfaces.cluster.world import World
from manyfaces.train.objectives.objective import Loss, Moment, Objective
from manyfaces.train.step import train_step


class Own(Objective):
    """As people write them: `last` is this rank's own."""

    def loss(self, forward: Any, batch: Any, moment: Moment) -> Loss:
        value = torch.tensor(1.0)
        return Loss(value, value, value.isfinite(), torch.tensor(moment.last))


def steps_of_a_rank() -> list[bool]:
    engine: Any = SimpleNamespace(
        run=None, module=None, backward=lambda loss: None, step=lambda lr: 0.0
    )
    batch: Any = SimpleNamespace(images={})
    rank = World.current().rank
    moments = [Moment(0, 2, 0.1, last=False), Moment(2, 2, 0.1, last=rank == 1)]
    return [train_step(engine, Own(), batch, each, seed=0, rank=rank).last for each in moments]


def test_the_last_step_of_one_rank_is_that_of_all() -> None:
    assert run_ranks(2, steps_of_a_rank, timeout_s=100) == [[False, True], [False, True]]
