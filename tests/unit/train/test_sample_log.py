"""The list of samples that were trained on: what is made again stands there once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from trained_samples import read_samples

from manyfaces.data.feed.loader import Batch
from manyfaces.train import sample_log
from manyfaces.train.sample_log import NoSampleLog, SampleLog, rewind


def batch(step: int, labels: list[int]) -> Batch:
    ids = np.arange(len(labels), dtype=np.int64) + 10 * step
    return Batch(step * 4, ids, {}, torch.tensor(labels))


@pytest.fixture(params=[1 << 20, 8, 100])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two ranks have made five steps; the end is read in blocks of some size."""
    monkeypatch.setattr(sample_log, "_BLOCK_BYTES", request.param)
    for rank in range(2):
        log = SampleLog(tmp_path / "samples", rank)
        for step in range(1, 6):
            log.made(step, batch(step, [3, -1, 5]))
    return tmp_path / "samples"


def test_what_was_trained_and_what_was_left_out_are_told(run: Path) -> None:
    found = read_samples(run)
    assert list(found) == [1, 2, 3, 4, 5]
    first, second = found[2]
    assert first == second == {"step": 2, "position": 8, "ids": [20, 22], "left_out": [21]}


@pytest.mark.parametrize("step", [0, 1, 3, 5, 9])
def test_steps_that_are_made_again_are_forgotten(run: Path, step: int) -> None:
    rewind(run, step)
    assert list(read_samples(run)) == [each for each in (1, 2, 3, 4, 5) if each <= step]
    SampleLog(run, 0).made(step + 1, batch(step + 1, [3]))
    assert step + 1 in read_samples(run)


def test_a_torn_line_is_forgotten(run: Path) -> None:
    with (run / "rank-1.jsonl").open("a") as file:
        file.write('{"step": 6, "posi')
    rewind(run, 5)
    assert {step: len(rows) for step, rows in read_samples(run).items()} == dict.fromkeys(
        range(1, 6), 2
    )


def test_a_line_that_a_full_disk_has_torn_swallows_no_other(run: Path) -> None:
    path = run / "rank-0.jsonl"
    with path.open("a") as file:
        file.write('{"step": 6, "posi')
    for step in (7, 8):
        SampleLog(run, 0).made(step, batch(step, [3, -1, 5]))
    rewind(run, 7)
    *_, fifth, torn, seventh = path.read_text().splitlines()
    assert torn == '{"step": 6, "posi'
    assert [json.loads(line)["step"] for line in (fifth, seventh)] == [5, 7]
    rewind(run, 6)
    assert json.loads(path.read_text().splitlines()[-1])["step"] == 5


def test_a_run_that_keeps_none(tmp_path: Path) -> None:
    NoSampleLog().made(1, batch(1, [3]))
    rewind(tmp_path / "samples", 3)
    assert list(tmp_path.iterdir()) == []
