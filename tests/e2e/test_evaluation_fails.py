"""An evaluation that fails costs no step: what was trained is saved before it."""

from pathlib import Path

import pytest
from commands import forked, recipe, rows

FAILS = """
from manyfaces.train.evaluation.result import Quantity
from manyfaces.train.protocols.protocol import Protocol


class Fails(Protocol):
    quantities = (Quantity("nothing", "nothing"),)

    def images(self):
        return []

    def result(self, embeddings):
        raise ValueError("no result today")
"""


@pytest.mark.slow
def test_the_last_step_is_saved_before_the_last_evaluation(
    dataset_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "fails.py"
    file.write_text(FAILS)
    own = {"kind": "custom", "file": str(file), "name": "Fails"}
    config = recipe(
        tmp_path,
        dataset_path,
        train={"epochs": 1},
        evaluation={"protocols": [own]},
        checkpoint={"every_steps": 1000},
        cluster={"workers": 1, "launcher": "process"},
    )
    run = tmp_path / "runs" / "run"
    for start in ("a fresh start", "resuming step-00000008"):
        done = forked("train", config)
        assert done.returncode == 2
        assert "no result today" in done.stderr
        assert start in done.stdout
        assert (run / "checkpoints" / "step-00000008" / "COMMIT.json").exists()
    done = forked("train", config, "evaluation.protocols=[]")
    assert done.returncode == 0, done.stderr
    steps = [row["step"] for row in rows(run / "metrics.jsonl") if "train/loss" in row]
    assert steps == list(range(1, 9))
