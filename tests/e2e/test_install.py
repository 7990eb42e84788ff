"""The wheel and the source distribution hold everything; the wheel installs into a fresh environment
and trains there."""

import json
import os
import re
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
from commands import recipe, rows

from manyfaces.train.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "data", "models", "cluster", "train")


def packaged() -> set[str]:
    """What a package has to hold, by its path below `manyfaces`."""
    kinds = ("*.py", "*.yaml", "*.html", "*.css", "*.js", "py.typed")
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


def skip_without_an_index(folder: Path) -> None:
    """Skip the test where pip gets no package of a few kB."""
    words = ("-m", "pip", "download", "--quiet", "--retries", "0", "--no-deps", "-d", folder)
    asked = subprocess.run(
        [sys.executable, *map(str, words), "packaging"], capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        pytest.skip(f"no package index answers here: {asked.stderr.strip()}")


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


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it. The dependencies are those of this environment, on
    its path but not installed anew: the editable install of this tree is not seen through it."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    python = environment / "bin" / "python"
    words = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *words, cwd=folder)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def test_it_installs_into_a_fresh_environment(environment: Path, tmp_path: Path) -> None:
    command, python = environment / "bin" / "manyfaces", environment / "bin" / "python"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"manyfaces {version}\n" in run(command, "--version", cwd=tmp_path)
    where = "import manyfaces.train.cli.main as main; print(main.__file__)"
    assert run(python, "-c", where, cwd=tmp_path).startswith(str(environment))
    shown = run(command, "check", "glint360k_r100", cwd=tmp_path)
    assert "name: glint360k-r100" in shown
    assert "17,091,657" in shown


def test_the_installed_files_make_the_same_wheel_again(
    environment: Path, wheel: Path, tmp_path: Path
) -> None:
    """`manyfaces manifest wheels` takes it along from where there are no sources."""
    program = (
        "from pathlib import Path; from manyfaces.cluster.manifests.own_wheel import own_wheel; "
        "print(own_wheel(Path.cwd()))"
    )
    made = Path(run(environment / "bin" / "python", "-c", program, cwd=tmp_path).strip())
    assert made.name == wheel.name
    with zipfile.ZipFile(made) as ours, zipfile.ZipFile(wheel) as built:
        assert set(ours.namelist()) == set(built.namelist())
        for name in built.namelist():
            if not name.endswith("/RECORD"):
                assert ours.read(name) == built.read(name), name
        record = next(name for name in built.namelist() if name.endswith("/RECORD"))
        assert sorted(ours.read(record).split()) == sorted(built.read(record).split())


@pytest.mark.slow
def test_ten_steps_are_trained_there(environment: Path, tmp_path: Path) -> None:
    command = environment / "bin" / "manyfaces"
    made = ("--identities", 20, "--images", 8, "--seed", 1)
    run(command, "data", "synth", "faces", *made, cwd=tmp_path)
    words = (
        "data.path=faces",
        "data.image_px=32",
        "evaluation.pairs=[]",
        "run.name=ten",
        "model={kind: mobilefacenet, scale: 1, embedding_dim: 16}",
        "train.batch_size=16",
        "train.epochs=1",
        "cluster.workers=1",
        "cluster.threads_per_worker=1",
    )
    run(command, "train", "quick/arcface", *words, cwd=tmp_path)  # under Ray, as it is by itself
    checkpoints = tmp_path / "runs" / "ten" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000010"]
    state = json.loads((checkpoints / "step-00000010" / "state.json").read_text())
    assert (state["step"], state["position"]) == (10, 160)


@pytest.mark.slow
def test_the_dockerfile_installs_what_trains(
    wheel: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its lines are run in a fresh environment, where pip's settings say what the index is."""
    skip_without_an_index(tmp_path / "asked")
    context = tmp_path / "context"
    context.mkdir()
    for file in (wheel, ROOT / "constraints.txt"):
        shutil.copy(file, context)
    monkeypatch.chdir(context)
    words = ("--wheel", wheel.name, "--constraints", "constraints.txt")
    assert main(["manifest", "dockerfile", *words]) == 0
    lines = re.findall(r"^RUN (.*)$", capsys.readouterr().out, re.MULTILINE)
    lines = [line for line in lines if "useradd" not in line]
    assert ["pip install" in line for line in lines] == [False, True]

    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    for line in lines:
        line = line.replace("/opt/manyfaces", str(context))
        run("bash", "-c", f"PATH={environment}/bin:$PATH; {line}", cwd=context)
    command = environment / "bin" / "manyfaces"
    assert "manyfaces " in run(command, "--version", cwd=tmp_path)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    frozen = run(environment / "bin" / "pip", "freeze", cwd=tmp_path).splitlines()
    installed = {line.partition("+")[0].lower() for line in frozen if "==" in line}
    assert installed <= {pin.lower() for pin in pins}, "every package is at its pinned version"

    run(command, "data", "synth", "made", "--identities", 10, "--images", 4, cwd=tmp_path)
    path = recipe(tmp_path, tmp_path / "made", cluster={"launcher": "process"})
    run(command, "train", path, cwd=tmp_path)
    steps = [row["step"] for row in rows(tmp_path / "runs" / "run" / "metrics.jsonl")]
    assert max(steps) == 10
