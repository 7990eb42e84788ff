"""The parts of a step add up, inner ones apart from those around them; events of a device are read
once it has passed them, and never waited for."""

from itertools import count

import pytest
import torch

from manyfaces.train import part_times
from manyfaces.train.part_times import PARTS, PartTimes


def nothing_but(**seconds: float) -> dict[str, float]:
    return dict.fromkeys(PARTS, 0.0) | seconds


def run_step(times: PartTimes) -> None:
    """Each mark is a second after the one before."""
    with times.part("head"):
        for _ in range(2):
            with times.part("forward"):
                pass
    with times.part("backward"):
        pass
    with times.part("optimizer"):
        pass


def test_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(part_times.time, "perf_counter", lambda: float(next(clock)))
    times = PartTimes(torch.device("cpu"))
    run_step(times)
    run_step(times)
    times.add("data", 0.5)
    expected = nothing_but(data=0.5, forward=4.0, head=6.0, backward=2.0, optimizer=2.0)
    assert times.take() == expected
    assert times.take() == nothing_but()


def test_a_part_that_fails_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(part_times.time, "perf_counter", lambda: float(next(clock)))
    times = PartTimes(torch.device("cpu"))
    with pytest.raises(RuntimeError), times.part("head"), times.part("forward"):
        raise RuntimeError
    assert times.take() == nothing_but(forward=1.0, head=2.0)


class Device:
    """Passes an event each millisecond of its own; has passed so many."""

    def __init__(self) -> None:
        self.recorded, self.passed = 0, 0

    def event(self, *, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.number = device, -1

    def record(self) -> None:
        self.number, self.device.recorded = self.device.recorded, self.device.recorded + 1

    def query(self) -> bool:
        return self.number < self.device.passed

    def elapsed_time(self, other: "Event") -> float:
        assert self.query()
        assert other.query(), "torch would wait, or raise"
        return 1000.0 * (other.number - self.number)


def test_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    times = PartTimes(torch.device("cuda", 0))
    run_step(times)
    assert times.take() == nothing_but()
    device.passed = 3  # head, forward, head have begun
    assert times.take() == nothing_but(head=1.0, forward=1.0)
    device.passed = device.recorded
    assert times.take() == nothing_but(head=2.0, forward=1.0, backward=1.0, optimizer=1.0)
    for _ in range(200):
        run_step(times)
        device.passed = device.recorded
    assert len(times._unread) < 256
    assert times.take() == nothing_but(forward=400.0, head=600.0, backward=200.0, optimizer=200.0)
