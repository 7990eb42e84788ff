"""A store of shards that is gone in the middle of a Ray run: the run ends behind a checkpoint, and
goes on when the store is back."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commands import manyfaces, recipe, rows, started, wait_until
from store_server import Proxy, upload

from manyfaces.data.synthetic.dataset import synthesise

pytestmark = pytest.mark.slow
STEPS, PATIENCE_S = 30, 3


@pytest.fixture
def config(proxy: Proxy, tmp_path: Path) -> Path:
    """Two workers, 15 shards of 8 images at a URL, and a cache of five: there is always something
    to fetch."""
    made = synthesise(tmp_path / "made", 20, 6, seed=7, processes=1, shard_images=8)
    far: dict[str, Any] = {
        "path": upload(proxy, tmp_path / "made", "faces", "many"),
        "order": {"kind": "shuffle", "window_shards": 1},
        "store_patience_s": PATIENCE_S,
    }
    far |= {
        "cache_dir": str(tmp_path / "cache"),
        "cache_gb": 5 * max(shard.bytes for shard in made.shards) / 1e9,
    }
    return recipe(tmp_path, tmp_path, data=far, checkpoint={"every_steps": 1000})


def test_the_run_stops_behind_a_checkpoint_and_goes_on_when_the_store_is_back(
    proxy: Proxy, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "run"

    def steps() -> list[dict[str, Any]]:
        return [row for row in rows(run / "metrics.jsonl") if "train/loss" in row]

    def events(*kinds: str) -> list[dict[str, Any]]:
        return [row for row in rows(run / "events.jsonl") if row["kind"] in kinds]

    proxy.faults["shard-"] = [
        *[""] * 14,
        *[503] * 10_000,
    ]  # whatever the timing, some steps and not all of them
    stopped = manyfaces("train", config)
    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    (line,) = stopped.stderr.strip().splitlines()
    for part in (
        "s3://faces/many/shard-0000",
        "(data.store_patience_s)",
        "Service Unavailable",
        "the same command then resumes",
    ):
        assert part in line
    lost_at = len(steps())
    assert 0 < lost_at < STEPS
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{lost_at:08d}"]

    proxy.forget()
    with started("train", config) as again:
        wait_until(lambda: len(steps()) > lost_at, again)
        with proxy.away(PATIENCE_S - 1):  # and now for less than the patience
            assert again.wait(240) == 0, again.communicate()[0]
    assert [(row["kind"], row["step"]) for row in events("start", "finished")] == [
        ("start", 0),
        ("start", lost_at),
        ("finished", STEPS),
    ]
    assert [row["step"] for row in steps()] == list(range(1, STEPS + 1))
    assert "Could not connect" in events("store")[-1]["message"]
    assert max(b["time"] - a["time"] for a, b in pairwise(steps()[lost_at:])) < 10
