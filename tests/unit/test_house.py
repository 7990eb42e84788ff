"""The rules of the house that no other tool checks."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "data", "models", "cluster", "train")
ENTRIES = {
    "ray.train": "cluster/launch.py cluster/callbacks.py",
    "ray.tune": "cluster/sweep.py",
    "ray.job_submission": "cluster/jobs.py",
    "deepspeed": "train/engine.py",
    "nvidia": "data/feed/decode.py",
    "webdataset": "data/dataset/write.py",
    "mlflow": "train/tracking/server.py",
    "psutil": "train/tracking/system.py",
    "pynvml": "train/tracking/system.py",
    "triton": "models/head/kernels.py",
    "fsspec": "data/store/remote.py",
    "tenacity": "data/store/remote.py",
    "timm": "models/backbones/timm.py",
    "torchvision": "models/backbones/timm.py",
    "faiss": "train/evaluation/nearest.py",
    "onnx": "train/exporters/onnx.py train/exporters/quantise.py",
    "onnxruntime": "train/evaluation/onnx_network.py train/exporters/quantise.py",
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
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_the_packages_are_the_rooms_and_their_folders() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = sorted(path.parent for path in sources() if path.name == "__init__.py")
    packages = [".".join(["manyfaces", *folder.relative_to(ROOT).parts]) for folder in folders]
    assert sorted(setup["packages"]) == sorted(packages)
    assert setup["package-dir"] == {f"manyfaces.{room}": room for room in ROOMS}
    assert {path.parent for path in sources()} == set(folders), "every folder of code is a package"
    assert all(len(folder.relative_to(ROOT).parts) <= 2 for folder in folders), (
        "one level of folders"
    )
    for room in ROOMS:
        assert (ROOT / room / "py.typed").exists()


@pytest.mark.parametrize("dependency", ENTRIES)
def test_each_heavy_dependency_enters_where_it_is_said_to(dependency: str) -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(n == dependency or n.startswith(dependency + ".") for n in imports(path))
    }
    assert users <= set(ENTRIES[dependency].split())


def test_files_are_one_concept() -> None:
    long = {
        str(path.relative_to(ROOT)): n
        for path in sources()
        if (n := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_each_file_of_the_tests_has_a_name_of_its_own() -> None:
    """pytest imports them by their base names, and refuses a second one of a name."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) == len(set(names))
