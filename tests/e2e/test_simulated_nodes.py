"""`manyfaces train --simulate-nodes`: a cluster on one machine, of which a node is lost; and what
each rank has printed, in the run's folder."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest
from commands import TIMEOUT_S, forked, recipe, rows, started, wait_until

from manyfaces.cluster.rank_logs import log_path


@pytest.mark.slow
def test_a_run_goes_on_without_the_node_that_was_killed(dataset_path: Path, tmp_path: Path) -> None:
    config = recipe(
        tmp_path,
        dataset_path,
        checkpoint={"every_steps": 5},
        train={"epochs": 16},
        cluster={"workers": {"min": 1, "max": 3}},
    )
    run = tmp_path / "runs" / "run"
    with started("train", config, "--simulate-nodes", 3) as process:
        wait_until(lambda: sum("train/loss" in row for row in rows(run / "metrics.jsonl")) > 6)
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(2)]
        kills = [
            re.fullmatch(r"note: node (\d) of 3: `kill -9 (\d+)` loses it\n", line) for line in told
        ]
        assert [kill and kill[1] for kill in kills] == ["2", "3"], told
        assert kills[1] is not None
        os.kill(int(kills[1][2]), signal.SIGKILL)
        shown = process.communicate(timeout=TIMEOUT_S)[0]
        assert process.returncode == 0, shown
    starts = [row for row in rows(run / "events.jsonl") if row["kind"] == "start"]
    assert starts[0]["world_size"] == 3
    assert starts[-1]["world_size"] < 3
    assert "1 restart" in shown
    for rank in range(3):
        text = log_path(run / "logs", rank).read_text()
        host = socket.gethostname()
        assert f"rank {rank} of 3 on {host}, process " in text
        assert (f"rank {rank} of {starts[-1]['world_size']} on" in text) == (
            rank < starts[-1]["world_size"]
        )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cluster.launcher=process"], "--simulate-nodes starts Ray's nodes"),
        (["--address", "auto"], "cluster.address auto is another cluster"),
        (["cluster.gpus_per_worker=1"], "--simulate-nodes is for workers on CPUs"),
    ],
)
def test_what_does_not_go_with_it_is_told(
    words: list[str], told: str, dataset_path: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, dataset_path)
    ended = forked("train", config, "--simulate-nodes", 2, *words)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert told in line
