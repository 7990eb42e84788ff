"""The best interval between checkpoints against a search, and the goodput against runs that are
played out failure by failure."""

import random
from dataclasses import replace

import pytest

from manyfaces.configs.amounts import HOUR
from manyfaces.configs.goodput import Interruptions, published_mtbf_s
from manyfaces.configs.interval_lines import interval_lines
from manyfaces.configs.plan import plan
from manyfaces.configs.plan_time import MeasuredRate
from manyfaces.configs.schema import Config
from manyfaces.configs.worker_machine import machine

CASES = [
    Interruptions(mtbf_s=8 * HOUR, stall_s=0.3, write_s=20, restart_s=60),
    Interruptions(mtbf_s=3 * HOUR, stall_s=60, write_s=0, restart_s=120),
    Interruptions(mtbf_s=900, stall_s=200, write_s=0, restart_s=30),
    Interruptions(mtbf_s=8 * HOUR, stall_s=0.01, write_s=120, restart_s=60),
]


def played(lost: Interruptions, work_s: float, days: int, seed: int) -> float:
    """Goodput of a run that is played out: what is committed, over the time that went by."""
    rng, span_s = random.Random(seed), max(work_s + lost.stall_s, lost.write_s)
    now, committed, end = 0.0, 0, days * 24 * HOUR
    while now < end:
        lives_s, restart_s = rng.expovariate(1 / lost.mtbf_s), lost.restart_s
        # An interval's checkpoint stands once its write is done; the first write begins behind the
        # first interval.
        committed += max(int((lives_s - lost.write_s) / span_s), 0)
        now += lives_s
        while (again_s := rng.expovariate(1 / lost.mtbf_s)) < restart_s:
            now += again_s
        now += restart_s
    return committed * work_s / now


@pytest.mark.parametrize("lost", CASES)
def test_the_goodput_is_that_of_a_run_that_is_played_out(lost: Interruptions) -> None:
    for work_s in (lost.best_work_s(), 3 * lost.best_work_s()):
        expected = played(lost, work_s, days=4000, seed=1)
        assert lost.goodput(work_s) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("lost", CASES)
def test_no_interval_loses_noticeably_less_than_the_best(lost: Interruptions) -> None:
    tried = [lost.goodput(10 * 1.01**power) for power in range(1000)]
    assert lost.goodput(lost.best_work_s()) >= max(tried) - 1e-3


def test_the_write_bounds_the_interval_from_below_and_does_not_move_it_otherwise() -> None:
    lost = CASES[0]
    assert replace(lost, write_s=0.0).best_work_s() == lost.best_work_s() > lost.write_s
    assert replace(lost, write_s=1000.0).best_work_s() == 1000 - lost.stall_s


def test_a_failure_each_mean_time_loses_half_an_interval_the_write_and_the_restart() -> None:
    lost = Interruptions(mtbf_s=1e7, stall_s=0.0, write_s=30, restart_s=90)
    share = (600 / 2 + 30 + 90) / 1e7
    assert 1 - lost.goodput(600) == pytest.approx(share, rel=1e-2)


def test_the_published_rate_is_a_failure_each_three_hours_on_16384_gpus() -> None:
    assert published_mtbf_s(16_384) == pytest.approx(3.1 * HOUR, rel=0.01)


def told(every: int, images_per_s: float | None = None, **words: float) -> str:
    config = Config.model_validate(
        {
            "model": {"kind": "iresnet", "depth": 50},
            "train": {"batch_size": 8192},
            "checkpoint": {"every_steps": every},
            "cluster": {"workers": 1024, "gpus_per_worker": 1},
        }
    )
    found = plan(config, 10_000_000, 1_000_000, 1024)
    rate = None if images_per_s is None else MeasuredRate(images_per_s, "measured")
    ((label, text),) = interval_lines(config, found, machine(config), rate=rate, **words)
    assert label == "checkpoints every"
    return text


def test_the_line_names_what_loses_least_and_how_much_it_gains() -> None:
    text = told(20_000, images_per_s=81_920, mtbf_hours=3.2, restart_s=60)
    assert text.startswith(
        "20,000 steps (33.3 min): at 1,024 workers with a failure each 3.2 h, a restart of 60 s "
        "and a write of "
    )
    assert "would lose least: goodput 9" in text
    has, could = text.rpartition("instead of ")[2], text.rpartition("goodput ")[2].split()[0]
    assert float(has.rstrip("%")) < 92 < 98 < float(could.rstrip("%"))


def test_an_interval_that_is_good_enough_is_left_alone() -> None:
    text = told(3000, images_per_s=81_920)
    assert "with a failure each 2.06 days" in text
    assert text.endswith("none loses noticeably less")


def test_without_a_rate_the_arithmetic_of_a_step_gives_one() -> None:
    text = told(1000)
    assert "steps as estimated (--images-per-s, --like)" in text
    # IResNet-50 at 37.9 GFLOP an image, 8 images a worker, on an H100 in float32.
    seconds = text.partition("steps (")[2].split()[0]
    assert 37.9e9 * 8 / 67e12 / 0.16 < float(seconds) / 1000 < 0.05


def test_an_interval_that_no_worker_lives_through_gives_no_goodput() -> None:
    lost = Interruptions(mtbf_s=1.0, stall_s=0.1, write_s=0.0, restart_s=60)
    assert lost.goodput(720) == 0.0 < lost.goodput(2)
    assert "goodput 0.0%;" in told(100_000, mtbf_hours=1e-3, images_per_s=81_920)
