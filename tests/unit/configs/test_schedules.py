"""Learning rates against torch's schedulers, and their ends."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import lr_scheduler

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.schedules.constant import Constant
from manyfaces.configs.schedules.cosine import Cosine
from manyfaces.configs.schedules.cosine_restarts import CosineRestarts
from manyfaces.configs.schedules.polynomial import Polynomial
from manyfaces.configs.schedules.schedule import Schedule, learning_rate
from manyfaces.configs.schedules.steps import Steps
from manyfaces.configs.schema import Config, Train

STEPS, BATCH = 50, 16
PEAK = 0.3


def by_torch(scheduler: Callable[[Any], Any], steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Polynomial(power=2), lambda o: lr_scheduler.PolynomialLR(o, STEPS, power=2)),
        (Cosine(), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (Cosine(least_lr=0.01), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.01)),
        (Constant(), lambda o: lr_scheduler.ConstantLR(o, factor=1)),
        (
            Steps(at_epochs=(5, 20, 28)),
            lambda o: lr_scheduler.MultiStepLR(o, milestones=[5, 20, 28], gamma=0.1),
        ),
        (
            CosineRestarts(constant_epochs=0, first_epochs=5, longer_by=2, least_lr=1e-3),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2, eta_min=1e-3),
        ),
    ],
    ids=lambda each: str(each.word()) if isinstance(each, Schedule) else "torch",
)
def test_they_are_torchs(ours: Schedule, theirs: Callable[[Any], Any]) -> None:
    """A step a pass over a dataset of 16 images."""
    rates = [
        learning_rate(ours, PEAK, BATCH * step, 0, BATCH * STEPS, BATCH) for step in range(STEPS)
    ]
    assert rates == pytest.approx(by_torch(theirs), abs=1e-9)


def test_restarts_begin_behind_the_constant_part() -> None:
    schedule = CosineRestarts(constant_epochs=5, first_epochs=5, longer_by=2)

    def at(epoch: float) -> float:
        return learning_rate(schedule, PEAK, round(1000 * epoch), 0, 40_000, 1000)

    assert [at(epoch) for epoch in (0, 4.999, 5, 10, 20)] == pytest.approx([PEAK] * 5)
    assert at(9.999) < at(7.5) == pytest.approx(PEAK / 2)
    assert at(15) == pytest.approx(PEAK / 2)


@given(
    st.sampled_from([Polynomial(), Cosine(), Constant(), Steps(at_epochs=(1, 3))]),
    st.integers(0, 1000),
    st.integers(1001, 5000),
    st.integers(0, 6000),
)
def test_it_rises_to_the_largest_and_falls(
    schedule: Schedule, warmup: int, total: int, position: int
) -> None:
    def at(place: int) -> float:
        return learning_rate(schedule, 0.5, place, warmup, total, 1500)

    assert 0 <= at(position) <= 0.5
    later = at(position + 1)
    assert later >= at(position) if position + 1 <= warmup else later <= at(position)
    assert at(warmup) == 0.5
    if not isinstance(schedule, Constant | Steps):
        assert at(total) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ({"kind": "steps", "at_epochs": [20, 10]}, "has to rise from one to the next"),
        ({"kind": "steps", "at_epochs": [5, 10]}, "at_epochs has 10, and the run ends after 10"),
        ({"kind": "cosine", "least_lr": 0.2}, r"least_lr 0.2 is above train.optimizer.lr 0.1"),
        ({"kind": "cosine_restarts", "constant_epochs": 10}, "is the whole run"),
    ],
)
def test_what_makes_no_sense_is_told(schedule: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Config(
            model=MobileFaceNet(), train=Train.model_validate({"epochs": 10, "schedule": schedule})
        )
