"""The learning rate against torch's schedulers, and its ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.configs.schema import Schedule
from manyfaces.train.schedule import learning_rate


def by_torch(scheduler, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_polynomial_and_cosine_are_torchs() -> None:
    polynomial = by_torch(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 50, power=2), 50)
    cosine = by_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50), 50)
    ours = [
        [learning_rate(Schedule(kind=k), 0.3, 16 * step, 0, 16 * 50) for step in range(50)]
        for k in ("polynomial", "cosine")
    ]
    assert ours[0] == pytest.approx(polynomial, abs=1e-9)
    assert ours[1] == pytest.approx(cosine, abs=1e-9)


@given(
    st.sampled_from(["polynomial", "cosine"]),
    st.integers(0, 1000),
    st.integers(1001, 5000),
    st.integers(0, 6000),
)
def test_it_rises_to_the_peak_and_falls_to_zero(
    kind: str, warmup: int, total: int, position: int
) -> None:
    config = Schedule(kind=kind)
    rate = learning_rate(config, 0.5, position, warmup, total)
    assert 0 <= rate <= 0.5
    later = learning_rate(config, 0.5, position + 1, warmup, total)
    assert later >= rate if position + 1 <= warmup else later <= rate
    assert learning_rate(config, 0.5, warmup, warmup, total) == 0.5
    assert learning_rate(config, 0.5, total, warmup, total) == pytest.approx(0, abs=1e-12)
