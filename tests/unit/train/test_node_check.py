"""A node that cannot read the dataset, or does not see the run's folder, says so in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from manyfaces.configs.load import dump, load
from manyfaces.train import node_check

MARK = ".mark"


def config(tmp_path: Path, dataset: Path, *words: str) -> str:
    return dump(load("demo", [f"run.dir={tmp_path}/runs", f"data.path={dataset}", *words]))


def test_a_node_that_sees_everything(tmp_path: Path, dataset_path: Path) -> None:
    told = config(tmp_path, dataset_path)
    assert node_check.begin(told, MARK) == node_check.check(told, MARK) == []
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [MARK]
    assert node_check.end(told, MARK) == []
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_is_not_shared(
    tmp_path: Path, dataset_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_check, "SEEN_WITHIN_S", 0.0)
    [line] = node_check.check(config(tmp_path, dataset_path), MARK)
    assert line == (
        f"run.dir {tmp_path}/runs: what the driver's node writes there is not seen here; give a "
        "folder on storage that every node has"
    )


def test_a_folder_that_cannot_be_written(dataset_path: Path) -> None:
    told = config(Path("/proc"), dataset_path)
    [line] = node_check.begin(told, MARK)
    assert line.startswith("run.dir /proc/runs: it cannot be written (")


def test_a_dataset_that_cannot_be_read(tmp_path: Path, dataset_path: Path) -> None:
    copy = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    last = max(copy.glob("*.tar"))
    told = config(tmp_path, copy)
    node_check.begin(told, MARK)
    last.write_bytes(last.read_bytes()[:100])
    [line] = node_check.check(told, MARK)
    assert line.startswith(f"{last}: 100 bytes, expected ")
    last.unlink()
    [line] = node_check.check(told, MARK)
    assert line.startswith(f"{last}: cannot be read (No such file or directory); restore it")
    shutil.rmtree(copy)
    [line] = node_check.check(told, MARK)
    assert line.startswith(f"dataset {copy}: no such folder")


def test_the_check_before_a_job_loads_no_torch() -> None:
    program = "import sys, manyfaces.train.node_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
