"""The plan as the command line tells it: what does not fit ends `check` with 2 and is refused by
`train`, machines are named, and a run's own rate is taken over."""

import json
from pathlib import Path

import pytest
from made_part import made_dataset, of_people, uneven_identities

from manyfaces.configs import this_machine
from manyfaces.configs.errors import UserError
from manyfaces.configs.load import dump, load
from manyfaces.configs.plan import plan
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.train.claim import claim, refuse_too_large
from manyfaces.train.cli.main import main
from manyfaces.train.folder import RunFolder
from manyfaces.train.measured import rate_like

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "num_gpus", lambda: 0)
    monkeypatch.setattr(this_machine, "memory_bytes", lambda: (16 * GIB, "this machine"))


def faces() -> Dataset:
    """200 images of 20 identities, of which there is only the index."""
    return made_dataset([of_people(uneven_identities(200, 20))], [1])


def small(tmp_path: Path, *words: str) -> Config:
    here = [f"run.dir={tmp_path / 'runs'}", "run.name=run", "cluster.launcher=process"]
    return load("demo", [*here, "train.batch_size=16", *words])


def test_check_ends_with_2_where_the_run_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["check", "demo", "cluster.workers=2", "train.batch_size=7000"]
    words.append("train.precision=bfloat16")
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "does not fit   " in out
    (line,) = err.splitlines()
    assert line.startswith("error: does not fit: a worker needs about 2")
    assert line.endswith("; cluster.check_memory=false goes on all the same")
    assert main([*words, "cluster.check_memory=false"]) == 0
    assert main([*words, "cluster.address=auto", "cluster.gpus_per_worker=0"]) == 0
    assert main([*words, "--memory-gb", "64"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "of 59.6 GiB a worker; as --memory-gb says" in out


def test_check_for_a_machine_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ["check", "pretrain/wf42m_vit_base"]
    assert main([*recipe, "--machine", "a100"]) == 0
    out = capsys.readouterr().out
    assert "A100 SXM 80 GB" in out
    assert "this machine has no GPU" in out
    assert main([*recipe, "--machine", "a10", "cluster.workers=4"]) == 2
    assert "(A10: by its data sheet)" in capsys.readouterr().err
    assert main([*recipe, "--machine", "tpu"]) == 2
    assert "cluster.machine" in capsys.readouterr().err


def test_train_refuses_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, config = faces(), small(tmp_path)
    told: list[str] = []
    refuse_too_large(config, dataset, told.append)
    monkeypatch.setattr(this_machine, "memory_bytes", lambda: (GIB // 4, "this machine"))
    with pytest.raises(UserError, match=r"does not fit: a worker needs about .* has 256 MiB"):
        refuse_too_large(config, dataset, told.append)
    elsewhere = small(tmp_path, "cluster.launcher=ray", "cluster.address=auto")
    refuse_too_large(elsewhere, dataset, told.append)  # nothing is known of its machines
    assert told == []
    refuse_too_large(small(tmp_path, "cluster.check_memory=false"), dataset, told.append)
    assert len(told) == 1


def test_a_run_keeps_its_plan_as_text_and_as_numbers(tmp_path: Path) -> None:
    dataset, config = faces(), small(tmp_path)
    folder = RunFolder.of(config)
    claim(config, dataset, folder).release()
    figures = json.loads(folder.plan_figures.read_text())
    assert figures["world_size"] == 1
    text = folder.plan.read_text()
    assert f"memory a worker: about {figures['memory_bytes'] / 2**20:.0f} MiB\n" in text
    assert "fits: " in text
    assert "time: " in text


def test_the_rate_of_another_run(tmp_path: Path) -> None:
    config, run = small(tmp_path), tmp_path / "old"
    with pytest.raises(UserError, match="no run with a measured rate is there"):
        rate_like(config, run)
    run.mkdir()
    (run / "config.yaml").write_text(dump(config))
    rows = [
        {"step": step, "time": 1.0, "images_per_s": rate, "forward_share": 0.4, "head_share": 0.1}
        for step, rate in enumerate((5.0, 40.0, 50.0))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = {"kind": "start", "time": 1.0, "message": "", "world_size": 1}
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")
    rate = rate_like(config, run)
    assert rate.images_per_s == 40
    assert "forward 40%, head 10%" in rate.source
    two = small(tmp_path, "cluster.launcher=ray", "cluster.workers=2")
    assert rate_like(two, run).images_per_s == 80
    assert "taken as 2 times as fast on 2" in rate_like(two, run).source
    with pytest.raises(UserError, match=r"its data\.image_px is another"):
        rate_like(small(tmp_path, "data.image_px=64"), run)


def test_the_rate_of_a_run_is_that_of_one_attempt(tmp_path: Path) -> None:
    """Attempts with one, two and four workers, of which the last has measured nothing yet."""
    config, run = small(tmp_path), tmp_path / "old"
    run.mkdir()
    (run / "config.yaml").write_text(dump(config))
    rates = [(1.5, 10.0), (1.6, 10.0), (1.7, 10.0), (2.5, 20.0), (2.6, 22.0)]
    rows = [
        {"step": step, "time": at, "images_per_s": rate} for step, (at, rate) in enumerate(rates)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    starts = [
        {"kind": "start", "time": at, "message": "", "world_size": workers}
        for at, workers in ((1.0, 1), (2.0, 2), (3.0, 4))
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in starts))
    rate = rate_like(small(tmp_path, "cluster.launcher=ray", "cluster.workers=2"), run)
    assert rate.images_per_s == 21
    assert "on 2 workers" in rate.source


def test_train_goes_on_where_the_plan_exceeds_the_memory_by_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, config = faces(), small(tmp_path)
    needs = plan(config, 200, 20, 1).memory_bytes
    told: list[str] = []
    monkeypatch.setattr(this_machine, "memory_bytes", lambda: (int(needs / 1.1), "this machine"))
    refuse_too_large(config, dataset, told.append)
    (line,) = told
    assert line.startswith("may not fit: a worker needs about ")
