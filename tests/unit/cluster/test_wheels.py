"""Which wheels a machine needs, in pieces and joined again; what install.sh says of each fault."""

import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from made_wheels import made_wheel
from packaging.tags import Tag, cpython_tags

from manyfaces.cluster.manifests import join_wheels, wheels
from manyfaces.cluster.manifests.target import Target
from manyfaces.cluster.manifests.wheel_choice import WheelChoice, choose, supports
from manyfaces.cluster.manifests.wheel_index import Fetched
from manyfaces.cluster.manifests.wheel_pieces import write_pieces
from manyfaces.configs.errors import UserError
from manyfaces.train.cli.main import main

TARGET = Target("3.12", "manylinux_2_28_x86_64")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
INDEX = {
    "torch": ("sympy", "filelock", "nvidia-nccl; platform_system == 'Linux'"),
    "sympy": ("mpmath",),
    "vision": ("torch==2.13.0", "numpy", "only-of-vision"),
    "engine": ("torch>=2", "hjson", "filelock"),
    "ray": ("click", 'aiohttp; extra == "default"', 'pandas; extra == "train"'),
    "old": (),
    "hjson": ("engine",),  # a circle, as some have
}
PINS = {"numpy": "2.4.6", "ray": "2.60.0", "engine": "0.19.8", "vision": "0.28.0", "click": "8"}


def chosen(folder: Path, *requires: str, without: tuple[str, ...] = ()) -> WheelChoice:
    """What a wheel with these requirements and the extra `dev` is chosen to need."""
    asked: list[str] = []

    def fetch(wanted: Mapping[str, str]) -> Fetched:
        asked.extend(wanted.values())
        there = {name for name in wanted if name != "gone"}
        made = {
            name: made_wheel(folder / "index", name, requires=INDEX.get(name, ())) for name in there
        }
        return Fetched(
            made, frozenset(there & {"hjson"}), dict.fromkeys(wanted.keys() - there, "-")
        )

    own = made_wheel(folder, "own", requires=requires)
    choice = choose(own, ["dev"], PINS, without, TARGET, fetch)
    assert len(asked) == len(set(asked)), "each is fetched once"
    assert "never" not in choice.wheels, "what a vendored package needs is not asked for"
    choice.unpinned &= set(choice.wheels)
    vars(choice)["asked"] = asked
    return choice


def test_what_only_a_package_that_is_there_needs_is_left_out(tmp_path: Path) -> None:
    choice = chosen(tmp_path, "torch>=2.11", "engine==0.19.*", "numpy", without=("torch",))
    assert set(choice.wheels) == {"engine", "numpy", "hjson", "filelock"}
    assert choice.there == {"torch"}
    assert choice.built == {"hjson"}
    whole = chosen(tmp_path, "torch>=2.11", "engine==0.19.*", "numpy")
    assert whole.wheels.keys() - choice.wheels.keys() == {"torch", "sympy", "mpmath", "nvidia-nccl"}


def test_what_goes_with_one_version_of_a_package_that_is_there_is_left_out(tmp_path: Path) -> None:
    choice = chosen(tmp_path, "vision", "torch", without=("torch",))
    assert choice.bound == {"vision": "torch==2.13.0"}
    assert choice.wheels == {}
    assert set(chosen(tmp_path, "vision").wheels) > {"vision", "only-of-vision", "torch"}


def test_markers_are_read_as_on_the_machine_that_it_is_for(tmp_path: Path) -> None:
    choice = chosen(
        tmp_path,
        "click; python_version >= '3.12'",
        "old; python_version < '3.12'",
        "windows; sys_platform == 'win32'",
        "arm; platform_machine == 'aarch64'",
        "tested; extra == 'dev'",
        "cloud; extra == 's3'",
    )
    assert set(choice.wheels) == {"click", "tested"}


def test_extras_are_followed_and_versions_are_those_that_are_pinned(tmp_path: Path) -> None:
    choice = chosen(tmp_path, "ray[default]==2.60.*", "gone<3", "numpy", "tested; extra == 'dev'")
    assert set(choice.wheels) == {"ray", "click", "aiohttp", "numpy", "tested"}
    assert {"ray==2.60.0", "click==8", "numpy==2.4.6", "gone<3"} <= set(vars(choice)["asked"])
    assert choice.missing == {"gone": "-"}
    assert choice.unpinned == {"aiohttp", "tested"}


def test_the_platforms_are_those_that_packaging_takes() -> None:
    """The oracle is the order in which an installer there would try them."""
    for target, oldest in ((TARGET, 5), (Target("3.11", "manylinux_2_17_aarch64"), 17)):
        newest = int(target.platform.split("_")[2])
        assert f"manylinux_2_{newest}_{target.machine}" == target.platforms[0]
        assert f"manylinux_2_{oldest}_{target.machine}" in target.platforms
        assert f"manylinux_2_{newest + 1}_{target.machine}" not in target.platforms
        assert f"manylinux2014_{target.machine}" in target.platforms
    tags = set(cpython_tags((3, 12), ["cp312"], TARGET.platforms))
    assert Tag("cp312", "cp312", "manylinux2014_x86_64") in tags
    assert Tag("cp310", "abi3", "manylinux_2_17_x86_64") in tags
    assert "cp312" in TARGET.pip_options()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--python", "12"), "--python 12: expected a version such as 3.12"),
        (("--platform", "win_amd64"), "--platform win_amd64: expected manylinux_2_N_ARCH"),
        (("--platform", "manylinux_2_28_riscv64"), "ARCH is x86_64 or aarch64"),
        (("--constraints", "none.txt"), "none.txt: no such file of constraints"),
        (("--constraints", __file__), ":1: "),
        (("--piece-mb", "0"), "must be a number above 0, not '0'"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["manifest", "wheels", "OUT", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert line in err
    assert not Path("OUT").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="exists already"):
        wheels.gather(
            tmp_path, TARGET, {}, extras=(), without=(), piece_bytes=1, tell=lambda _: None
        )


def test_a_python_that_it_is_not_for_is_told(tmp_path: Path) -> None:
    wheel = made_wheel(tmp_path, "own", python=">=3.11,<3.13")
    assert supports(wheel, TARGET) == ""
    assert supports(wheel, Target("3.13", TARGET.platform)) == "<3.13,>=3.11"


def test_pins_are_read_and_anything_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text("# pinned\nFlask-Cors==6.0.5  # why\n\nray==2.60.0\n")
    assert wheels.pinned(file) == ({"flask-cors": "6.0.5", "ray": "2.60.0"}, str(file))
    for wrong in ("ray>=2", "ray", "ray==2.60.0,<3", "ray = 2"):
        file.write_text(f"flask==3\n{wrong}\n")
        with pytest.raises(UserError, match=r"constraints.txt:2: .* expected NAME==VERSION"):
            wheels.pinned(file)


def test_without_sources_the_versions_are_those_that_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wheels, "sources", lambda: None)
    pins, source = wheels.pinned(None)
    assert source == "the versions that are installed here"
    assert pins["packaging"].count(".") >= 1
    assert "+" not in pins["torch"], "the index has no builds of this machine alone"


def made_pieces(folder: Path, python: str = HERE) -> tuple[Path, list[Path]]:
    """A folder as the verb writes it, of wheels of 5 to 5,000 bytes in pieces of 1,500; and the
    wheels."""
    generator = random.Random(1)
    made = [
        made_wheel(folder / "made", f"p{number}", content=generator.randbytes(size))
        for number, size in enumerate((5, 2000, 10, 5000, 700))
    ]
    out = folder / "out"
    entries = write_pieces(made, out, 1500)
    target = Target(python, f"manylinux_2_17_{platform.machine()}")
    wheels._write_rest(out, target, "9.9", WheelChoice(there={"pytest"}), entries)
    return out, made


def test_pieces_are_bounded_and_join_to_the_same_bytes(tmp_path: Path) -> None:
    out, made = made_pieces(tmp_path)
    pieces = [list(piece.iterdir()) for piece in out.glob("piece-*")]
    sizes = [sum(path.stat().st_size for path in piece) for piece in pieces]
    assert max(sizes) <= 1500
    total = sum(wheel.stat().st_size for wheel in made)
    assert len(pieces) <= 2 * total / 1500 + 1, "two pieces less than half full would be one"
    (joined := tmp_path / "joined").mkdir()
    assert join_wheels.main(out, joined) == 0
    assert {path.name for path in joined.iterdir()} == {wheel.name for wheel in made}
    for wheel in made:
        assert (joined / wheel.name).read_bytes() == wheel.read_bytes()


def test_pieces_may_be_put_together_in_one_folder(tmp_path: Path) -> None:
    out, made = made_pieces(tmp_path)
    for path in list(out.rglob("piece-*/*")):
        path.rename(out / path.name)
    (joined := tmp_path / "joined").mkdir()
    assert join_wheels.main(out, joined) == 0
    assert len(list(joined.iterdir())) == len(made)


def installed(out: Path, **environment: str) -> list[str]:
    """What install.sh says where it fails."""
    ended = subprocess.run(
        ["bash", str(out / "install.sh")],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stdout == ""
    return ended.stderr.splitlines()


def test_the_script_says_what_is_wrong_with_the_files(tmp_path: Path) -> None:
    out, _ = made_pieces(tmp_path)
    entry = next(
        e for e in json.loads((out / "wheels.json").read_text())["wheels"] if "p3" in e["name"]
    )
    lost, damaged, cut = (out / file["path"] for file in entry["files"][:3])
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    cut.write_bytes(cut.read_bytes()[:-1])
    assert installed(out) == [
        f"error: {lost.relative_to(out)} is missing",
        f"error: {damaged}: its bytes are not those of wheels.json (SHA-256); copy it again",
        f"error: {cut}: its bytes are not those of wheels.json (SHA-256); copy it again",
    ]


def test_the_script_says_what_is_wrong_with_the_machine(tmp_path: Path) -> None:
    out, _ = made_pieces(tmp_path, python="3.99")
    assert installed(out) == [
        f"error: {sys.executable} is Python {HERE}, and the wheels are for 3.99: "
        "PYTHON=python3.99 bash install.sh"
    ]
    [line] = installed(out, PYTHON="/none/python")
    assert line.startswith("error: /none/python does not run; name a Python 3.99")


def test_the_machine_needs_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = made_pieces(tmp_path)
    manifest = json.loads((out / "wheels.json").read_text())
    manifest.update(machine="sparc", glibc=999, not_gathered={"no_such": "no wheel", "numpy": "-"})
    (out / "wheels.json").write_text(json.dumps(manifest))
    assert join_wheels.main(out, tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "error: the wheels are for sparc",
        "error: the wheels need glibc 2.999 or newer",
        "error: no_such is not installed here",
    ]


def test_the_script_is_sound_bash(tmp_path: Path) -> None:
    out, _ = made_pieces(tmp_path)
    assert subprocess.run(["bash", "-n", str(out / "install.sh")], check=False).returncode == 0
