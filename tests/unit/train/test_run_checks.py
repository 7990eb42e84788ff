"""What is checked before a run starts, and what a run that cannot begin leaves behind."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_part import made_dataset, of_people, uneven_identities
from rich.console import Console

from manyfaces.cluster import launch
from manyfaces.configs import this_machine
from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load
from manyfaces.configs.schema import Config
from manyfaces.train import run
from manyfaces.train.folder import RunFolder
from manyfaces.train.record import Record

OWN = """
from manyfaces.models.margins.margin import Margin


class Own(Margin):
    def __init__(self, **given):
        pass
"""
SMALL = (
    "data.expect_images=200",
    "data.expect_identities=20",
    "train.batch_size=16",
    "evaluation.pairs=[]",
)


@pytest.fixture(autouse=True)
def _without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "num_gpus", lambda: 0)
    monkeypatch.setattr(launch, "count_gpus", lambda: 0)
    monkeypatch.setattr(run, "_look", lambda *given: None)


def small(tmp_path: Path, *words: str) -> Config:
    here = [f"run.dir={tmp_path / 'runs'}", "run.name=run", "cluster.launcher=process"]
    return load("demo", [*here, *SMALL, *words])


def checked(config: Config) -> bool:
    """Whether the run of this configuration is complete, once its checks have passed."""
    dataset = made_dataset([of_people(uneven_identities(200, 20))], [1])
    folder = RunFolder.of(config)
    lease, _, complete, _ = run._checked(config, dataset, folder, Console(), takeover=False)
    lease.release()
    return complete


def test_a_finished_run_needs_no_gpus(tmp_path: Path) -> None:
    config = small(tmp_path, "cluster.gpus_per_worker=1")
    record = Record(RunFolder.of(config).path)
    record.event("finished", "done", step=1)
    with pytest.raises(UserError, match=r"cluster.gpus_per_worker is 1"):
        checked(config)
    record.event("finished", "done", step=10_000)
    assert checked(config)


def test_a_secret_that_the_record_would_show_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    margin = (
        f"{{kind: custom, file: {tmp_path}/own.py, name: Own, parameters: {{api_key: PLANTED}}}}"
    )
    with pytest.raises(UserError, match=r"^head.margin.parameters.api_key: a secret stands in it"):
        checked(small(tmp_path, f"head.margin={margin}"))
    assert not (tmp_path / "runs").exists()
    assert not checked(small(tmp_path, "tracking.uri=http://u:PLANTED@host"))
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if b"PLANTED" in path.read_bytes()]


def test_a_session_that_cannot_begin_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> None:
        raise UserError("the folder is gone")

    released: list[int] = []
    claimed: Any = SimpleNamespace(quantities={}, release=lambda: released.append(1))
    config, before = small(tmp_path), threading.enumerate()
    monkeypatch.setattr(run, "share_stop", fails)
    with pytest.raises(UserError, match="folder is gone"):
        run._run(config, RunFolder.of(config), Console(), claimed, 0.0)
    assert released == [1]
    assert [each.name for each in threading.enumerate() if each not in before] == []
