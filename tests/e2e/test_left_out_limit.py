"""More batches without finite numbers than may be left out end the run by one line of all."""

from pathlib import Path

import pytest
from commands import forked, rows
from poisoned_batch import recipe


@pytest.mark.slow
def test_one_more_than_may_be_left_out(dataset_path: Path, tmp_path: Path) -> None:
    """The sample comes again in the second epoch."""
    path = recipe(tmp_path, dataset_path, 6)
    most = "train.on_not_finite={kind: leave_out, at_most: 1}"
    done = forked("train", path, "train.epochs=2", most)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    run = tmp_path / "runs" / "run"
    (listed,) = rows(run / "left_out.jsonl")
    (stopped,) = [row for row in rows(run / "events.jsonl") if row["kind"] == "not_finite"]
    assert stopped["step"] > 8
    for part in (
        f"step {stopped['step']}: loss nan",
        "left out before it: step 6 (loss nan, gradient norm inf at samples 80 to 95)",
        "the last good checkpoint is",
        "a larger train.on_not_finite.at_most than 1",
    ):
        assert part in line
    assert listed["step"] == 6
    steps = [row["step"] for row in rows(run / "metrics.jsonl")]
    assert steps == [step for step in range(1, stopped["step"]) if step != 6]
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    # The person looks at it, and lets the run go on.
    again = forked("train", path, "train.epochs=2", "train.on_not_finite=leave_out")
    assert again.returncode == 0, again.stdout + again.stderr
    assert [row["step"] for row in rows(run / "left_out.jsonl")] == [6, stopped["step"]]
