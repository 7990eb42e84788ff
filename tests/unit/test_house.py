"""The rules of the house that no other tool checks."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "data", "models", "cluster", "train")
ENTRIES = {
    "ray.train": "cluster/launch.py",
    "ray.job_submission": "cluster/jobs.py",
    "deepspeed": "train/engine.py",
    "nvidia": "data/decode.py",
    "webdataset": "data/write.py",
    "mlflow": "train/tracking.py",
    "triton": "models/kernels.py",
    "fsspec": "data/remote.py",
    "tenacity": "data/remote.py",
}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]


def test_the_packages_are_the_rooms() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setup["packages"] == [f"manyfaces.{room}" for room in ROOMS]
    assert setup["package-dir"] == {f"manyfaces.{room}": room for room in ROOMS}
    for room in ROOMS:
        assert (ROOT / room / "py.typed").exists()
        assert not [p for p in (ROOT / room).iterdir() if p.is_dir() and p.name != "__pycache__"], "folders stay flat"


@pytest.mark.parametrize("dependency", ENTRIES)
def test_each_heavy_dependency_enters_through_one_file(dependency: str) -> None:
    users = {
        str(path.relative_to(ROOT)) for path in sources() if any(n == dependency or n.startswith(dependency + ".") for n in imports(path))
    }
    assert users <= {ENTRIES[dependency]}


def test_files_are_one_concept() -> None:
    long = {str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
