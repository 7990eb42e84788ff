"""The wheel and the source distribution hold everything, and install into a fresh environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "data", "models", "cluster", "train")


def packaged() -> set[str]:
    """What a package has to hold, by its path below `manyfaces`."""
    kinds = ("*.py", "*.yaml", "py.typed")
    return {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for kind in kinds
        for path in (ROOT / room).rglob(kind)
    }


def run(*words: object, cwd: Path) -> str:
    """What a command prints; it runs without the paths that make this tree importable."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [*map(str, words)], cwd=cwd, env=plain, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def wheel_of(source: Path, out: Path) -> Path:
    """The wheel that pip builds of a folder or of a source distribution, with the installed
    setuptools, so that nothing is downloaded."""
    words = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", out)
    run(sys.executable, "-m", "pip", *words, source, cwd=out.parent)
    (wheel,) = out.glob("*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, since builds leave files behind."""
    copy = tmp_path_factory.mktemp("built") / "tree"
    copy.mkdir()
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path) -> Path:
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tree.parent)!r})"
    run(sys.executable, "-c", build, cwd=tree)
    (path,) = tree.parent.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built of the source distribution: what is missing there is missing here too."""
    return wheel_of(sdist, sdist.parent / "wheel")


def test_the_source_distribution_holds_every_file(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    missing = (packaged() | {"LICENSE", "README.md", "pyproject.toml"}) - names
    assert not missing


def test_the_wheel_holds_every_file_and_the_licence(tree: Path, wheel: Path) -> None:
    names = names_in(wheel)
    expected = {f"manyfaces/{name}" for name in packaged()}
    assert {name for name in names if name.startswith("manyfaces/")} == expected
    assert names_in(wheel_of(tree, tree.parent / "wheel_of_the_tree")) == names
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]


def test_it_installs_into_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are those of this environment, on its path but not installed anew: the
    editable install of this tree is not seen through it."""
    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    words = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *words, cwd=tmp_path)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    command = environment / "bin" / "manyfaces"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"manyfaces {version}\n" in run(command, "--version", cwd=tmp_path)
    where = "import manyfaces.train.cli.main as main; print(main.__file__)"
    assert run(python, "-c", where, cwd=tmp_path).startswith(str(packages))
    shown = run(command, "check", "glint360k_r100", cwd=tmp_path)
    assert "name: glint360k-r100" in shown
    assert "17,091,657" in shown
