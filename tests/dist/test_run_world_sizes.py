"""A run of a LayerNorm network goes on at any number of ranks from what any other number saved: the
same samples, the same state to the bit, and the same losses but for rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_resume import Trained, assert_same_state, small_tree, trained

pytestmark = pytest.mark.slow

WORLDS, SAVED_AT, STEPS_BEHIND, BATCH = (1, 2, 3, 4), 2, 50, 10


@pytest.fixture(scope="module")
def whole_runs(
    dataset_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[int, Trained]]:
    """The configuration of a network with LayerNorm, and its runs at each number of ranks, in uneven
    shares, by the run's own loader and loop."""
    folder = tmp_path_factory.mktemp("whole")
    steps = SAVED_AT + STEPS_BEHIND
    tree = small_tree(
        dataset_path,
        folder,
        model={"parameters": {"norm": "layer", "dropout": 0.0}},
        head={"scale": 8, "sub_centers": 2},
        train={
            "batch_size": BATCH,
            "epochs": round(steps * BATCH / 120, 2),
            "optimizer": {"kind": "sgd", "lr": 2e-4},
        },
        checkpoint={"every_steps": SAVED_AT, "keep": 1000},
    )
    runs = {world: trained(folder / f"on-{world}", tree, world) for world in WORLDS}
    assert all(max(run.numbers) == steps for run in runs.values())
    return tree, runs


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("saved_by", WORLDS)
def test_a_run_goes_on_for_fifty_steps_on_any_number_of_ranks(
    whole_runs, tmp_path: Path, saved_by: int, world: int
) -> None:
    """The same samples, the same state of optimiser and head to the bit after it was read, and the
    same losses."""
    tree, runs = whole_runs
    start = runs[saved_by].checkpoint(SAVED_AT)
    seldom = {"every_steps": 1000}
    resumed = trained(tmp_path / "resumed", tree, world, start, checkpoint=seldom)
    assert_same_state(resumed.restored(SAVED_AT), start)
    assert resumed.ids() == runs[1].ids(SAVED_AT * BATCH)
    steps = range(SAVED_AT + 1, SAVED_AT + STEPS_BEHIND + 1)
    losses, expected = (
        [run.numbers[step]["train/loss"] for step in steps] for run in (resumed, runs[saved_by])
    )
    assert len(set(expected)) == STEPS_BEHIND
    assert np.allclose(losses, expected, rtol=1e-5, atol=0), np.abs(np.divide(losses, expected) - 1)
