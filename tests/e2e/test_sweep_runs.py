"""A sweep of four trials: one falls behind and is stopped early, one fails, and an interrupted
sweep goes on."""

import re
import signal
from pathlib import Path

import pytest
from commands import events, manyfaces, recipe, started, wait_until
from node_runs import last_step, starts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS = 60
RATES = "train.optimizer.lr=[1e-6,0.05,1e-7,1e30]"
"""The first trial is never behind any other, the second learns, the third learns less than both,
the fourth is not finite."""


def test_a_sweep_is_interrupted_and_goes_on(dataset_path: Path, tmp_path: Path) -> None:
    config = recipe(
        tmp_path,
        dataset_path,
        train={"epochs": 8},
        checkpoint={"every_steps": 25, "keep": 3},
        cluster={"workers": 1},
    )
    words = ["sweep", config, RATES, "--metric", "train/loss", "--concurrent", 1]
    words += ["--grace-epochs", 1]
    runs = [tmp_path / "runs" / f"run-{n:03d}" for n in range(4)]

    with started(*words) as process:
        wait_until(lambda: last_step(runs[0]) >= 20, process)
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=120)[0]
    assert process.returncode == 75, text
    assert "stopped by SIGTERM; the same command goes on with the sweep" in text
    assert "Traceback" not in text
    saved = last_step(runs[0])
    assert 20 <= saved < STEPS
    assert list((runs[0] / "checkpoints").glob(f"step-{saved:08d}"))
    assert not runs[1].exists()

    done = manyfaces(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert [row["step"] for row in starts(runs[0])] == [0, saved]
    assert [last_step(run) for run in runs[:2]] == [STEPS, STEPS]
    assert events(runs[1])[-1][0] == "finished"
    behind = last_step(runs[2])
    assert 8 <= behind < STEPS
    assert events(runs[2])[-1][0] == "interrupted"
    assert list((runs[2] / "checkpoints").glob(f"step-{behind:08d}"))
    table = [line.split("│")[1:-1] for line in done.stdout.splitlines() if "│ run-" in line]
    states = {cells[0].strip(): cells[-1].strip() for cells in table}
    assert next(iter(states)) == "run-001"
    assert states["run-000"] == states["run-001"] == "finished"
    assert states["run-002"] == "stopped early"
    # The last column is as narrow as the others leave it.
    told = " ".join(line.split("│")[-2].strip() for line in done.stdout.splitlines() if "│" in line)
    assert re.search(r"failed: .*not finite", told)
    assert done.stderr.splitlines()[-1].startswith("error: sweep: 1 of 4 trials have failed")
    assert (tmp_path / "runs" / "run-sweep" / "sweep.png").stat().st_size

    # Neither what has finished nor what had fallen behind is run again; what failed is.
    again = manyfaces(*words)
    assert again.returncode == 2
    assert [len(starts(run)) for run in runs[:3]] == [2, 1, 1]
    assert len(starts(runs[3])) == 2
    assert "run-002: stopped early" in again.stdout
