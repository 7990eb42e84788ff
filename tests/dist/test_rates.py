"""Two ranks of which one is slow: it is named with its part, though both take as long for a step
because they wait for each other. Time is made up, so that a busy machine changes nothing."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks
from torch import nn

from manyfaces.train import loop, part_times, rates
from manyfaces.train.objectives.objective import Loss, Moment, Objective
from manyfaces.train.part_times import PartTimes
from manyfaces.train.rates import Rates
from manyfaces.train.step import train_step

STEPS = 25


class Clock:
    """This rank's, which goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        told = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        loop.time = part_times.time = rates.time = told  # type: ignore[attr-defined]

    def wait_for_all(self) -> None:
        """As a collective does."""
        latest = torch.tensor(self.now, dtype=torch.float64)
        dist.all_reduce(latest, dist.ReduceOp.MAX)
        self.now = latest.item()


class Meeting(Objective):
    """Its ranks wait for each other, as a head's do."""

    tells_last = True

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def loss(self, forward: Any, batch: Any, moment: Moment) -> Loss:
        value = forward().embeddings["main"]
        self.clock.wait_for_all()
        return Loss(value, value, value.isfinite(), torch.tensor(moment.last))


def rates_of_all(*parts: str) -> list[tuple[list[dict[str, float]], list[str]]]:
    """By each part that is slow."""
    return [rates_of_a_rank(part) for part in parts]


def rates_of_a_rank(slow: str) -> tuple[list[dict[str, float]], list[str]]:
    """Data take 1 s and a forward pass 2 s, with 4 s more on rank 1 for the part that is slow."""
    clock = Clock()

    def take(part: str, seconds: float) -> None:
        clock.now += seconds + 4 * (part == slow and dist.get_rank() == 1)

    def batches() -> Any:
        for _ in range(STEPS):  # the first is there before it is asked for
            yield SimpleNamespace(images={"main": None})
            take("data", 1.0)

    def run(images: Any) -> Any:
        take("forward", 2.0)
        return SimpleNamespace(embeddings={"main": torch.tensor(1.0)})

    engine: Any = SimpleNamespace(
        run=run, module=nn.Identity(), backward=lambda loss: None, step=lambda lr: 0.0
    )
    times = PartTimes(torch.device("cpu"))
    counted = Rates(times, ("data", "forward"), dist.new_group(backend="gloo"))
    metrics, lines = [], []
    loader: Any = batches()
    for number, (batch, waited_s, _) in enumerate(loop.timed(loader), 1):
        moment = Moment(0, 4, 0.1)
        rank = dist.get_rank()
        train_step(engine, Meeting(clock), batch, moment, seed=0, rank=rank, times=times)
        times.add("data", waited_s)
        counted.count(4)
        if number % 5 == 0:
            row, told = counted.take()
            metrics.append(row)
            lines += [each.line for each in told]
    return metrics, lines


def test_a_slow_rank_and_its_part_are_named_and_equal_ranks_are_not() -> None:
    parts = ("data", "forward")
    by_rank = run_ranks(2, rates_of_all, *parts, "nothing", timeout_s=300)
    assert by_rank[0] == by_rank[1]
    *slow, (metrics, lines) = by_rank[0]
    for part, told in zip(parts, slow, strict=True):
        check_slow(part, *told)
    assert lines == []
    assert all(row["slowest_rank_ratio"] == 1 for row in metrics)


def check_slow(part: str, metrics: list[dict[str, float]], lines: list[str]) -> None:
    (line,) = lines
    assert line == (
        f"rank 1 on {socket.gethostname()} is slow: its own part of a step takes 7 s where the "
        f"median of 2 ranks is 3 s, for 20 steps; most of it in {part}"
    )
    row = metrics[2]  # between the first and the last step
    assert row["images_per_s"] == 4 / 7
    assert (row["slowest_rank"], row["slowest_rank_ratio"]) == (1, 7 / 3)
    expected = {"data_wait_share": 1 / 7, "forward_share": 2 / 7}
    expected[{"data": "data_wait_share", "forward": "forward_share"}[part]] += 2 / 7
    expected["head_share"] = 2 / 7  # rank 0 waits there for 4 of 7 s, rank 1 does not
    for name, share in expected.items():
        assert row[name] == pytest.approx(share), name
    for name in ("backward_share", "optimizer_share", "checkpoint_share", "evaluation_share"):
        assert row[name] == 0


def row_behind_a_wait() -> dict[str, float]:
    """A step of 1 s, a checkpoint that is waited for 2 s, and 100 s until the worker is
    replaced."""
    clock = Clock()

    def wait(seconds: float = 2.0, beat: object = None) -> None:
        clock.now += seconds

    group = dist.new_group(backend="gloo")
    counted = Rates(PartTimes(torch.device("cpu")), ("data", "forward"), group)
    parts: Any = SimpleNamespace(
        stop=SimpleNamespace(pause_s=100.0, pause=wait, check=lambda: None),
        checkpointer=SimpleNamespace(wait=wait),
        watchdog=SimpleNamespace(phase=lambda name: None, beat=None),
        protocols=[],
        group=group,
    )
    clock.now += 1.0
    counted.count(4)
    loop._follow_request(parts, counted, is_end=False)
    row, _ = counted.take()
    return row


def test_the_wait_for_a_replacement_is_no_training() -> None:
    (row,) = run_ranks(1, row_behind_a_wait, timeout_s=300)
    assert row["images_per_s"] == pytest.approx(4 / 3)
    assert row["checkpoint_share"] == pytest.approx(2 / 3)
    assert row["evaluation_share"] == 0
