"""`manyfaces manifest wheels` with pip itself: what an index has, and a real gathering that is
installed from its pieces."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from commands import manyfaces
from made_wheels import made_wheel

from manyfaces.cluster.manifests.target import Target
from manyfaces.cluster.manifests.wheel_index import WheelIndex
from manyfaces.configs.errors import UserError

pytestmark = pytest.mark.slow

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
TARGET = Target("3.12", "manylinux_2_28_x86_64")
HEAVY = "torch,ray,nvidia-dali-cuda130,mlflow,pyarrow,opencv-python-headless"
"""Left to the machine in the real gathering: some 600 MB with what they need."""
PIECE_MB = 5


def made_sdist(folder: Path, name: str, setup: str = "") -> None:
    """A source distribution in `folder`, built with the installed setuptools."""
    source = folder / name
    (source / name).mkdir(parents=True)
    (source / name / "__init__.py").touch()
    (source / name / "fast.c").write_text("int fast;\n")
    call = f"setup(name={name!r}, version='1.0', packages=[{name!r}], {setup})"
    (source / "setup.py").write_text(f"from setuptools import Extension, setup\n{call}\n")
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    shutil.rmtree(source)


def test_an_index_is_asked_for_wheels_of_the_other_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, folder = tmp_path / "index", tmp_path / "wheels"
    folder.mkdir()
    for name, tag in {
        "everywhere": "py3-none-any",
        "stable": "cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "there": "cp312-cp312-manylinux_2_28_x86_64",
        "newer_libc": "cp312-cp312-manylinux_2_34_x86_64",
        "here_alone": f"cp{HERE.replace('.', '')}-none-any",
    }.items():
        made_wheel(index, name, tag=tag)
    made_sdist(index, "of_sources")
    made_sdist(index, "compiled", "ext_modules=[Extension('compiled.fast', ['compiled/fast.c'])]")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say that there is none
    names = ["everywhere", "stable", "there", "newer-libc", "here-alone", "of-sources", "compiled"]
    asked = {name: f"{name}==1.0" for name in [*names, "nowhere"]}

    fetched = WheelIndex(TARGET, folder).fetch(asked)

    assert set(fetched.wheels) == {"everywhere", "stable", "there", "of-sources"}
    assert fetched.wheels["of-sources"].name == "of_sources-1.0-py3-none-any.whl"
    assert fetched.built == {"of-sources"}
    assert set(fetched.missing) == {"newer-libc", "here-alone", "compiled", "nowhere"}
    assert "other versions of Python" in fetched.missing["here-alone"]
    assert "compiles code" in fetched.missing["compiled"]
    assert "does not have it" in fetched.missing["nowhere"]


def test_an_index_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    line = r"pip download: http://127.0.0.1:9/simple/rich/: connection error"
    with pytest.raises(UserError, match=line) as caught:
        WheelIndex(TARGET, tmp_path).fetch({"rich": "rich==15.0.0"})
    assert "\n" not in str(caught.value)


def install(out: Path, python: Path) -> subprocess.CompletedProcess[str]:
    """install.sh for this Python, which takes nothing that it sees outside for installed."""
    settings = {"PYTHON": str(python), "PIP_IGNORE_INSTALLED": "1"}
    environment = {**os.environ, **settings}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        ["bash", str(out / "install.sh")],
        env=environment,
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_gathered_is_installed_from_its_pieces(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--python", HERE, "--without", HEAVY, "--extras", "", "--piece-mb", PIECE_MB)
    gathered = manyfaces("manifest", "wheels", *words, out)
    if "pip download: " in gathered.stderr:
        pytest.skip(f"no package index answers here: {gathered.stderr.strip()}")
    assert gathered.returncode == 0, gathered.stdout + gathered.stderr
    assert f"manyfaces 0.1.0 for Python {HERE}" in gathered.stdout
    assert "deepspeed was built here" in gathered.stderr
    wheels = json.loads((out / "wheels.json").read_text())["wheels"]
    assert any(len(wheel["files"]) > 1 for wheel in wheels), "one is split"
    for piece in out.glob("piece-*"):
        assert sum(path.stat().st_size for path in piece.iterdir()) <= PIECE_MB * 1_000_000

    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    ended = install(out, python)
    assert ended.returncode == 2, "the heavy ones are not there"
    assert len(ended.stderr.splitlines()) == len(HEAVY.split(","))
    assert "error: torch is not installed here" in ended.stderr
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "machine.pth").write_text(sysconfig.get_path("purelib") + "\n")

    ended = install(out, python)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "manyfaces 0.1.0\n" in ended.stdout
    there = {path.name for path in packages.glob("*.dist-info")}
    for wheel in wheels:
        name, version = wheel["name"].split("-")[:2]
        assert f"{name}-{version}.dist-info".lower() in map(str.lower, there)
    assert not any(path.startswith(("torch-", "ray-")) for path in there)
    assert "0.1.0" in subprocess.check_output(
        [environment / "bin" / "manyfaces", "--version"], text=True, cwd=tmp_path
    )
