"""`train.precision: auto`: what a run begins with, and that it keeps it on another machine."""

from pathlib import Path

import pytest

from manyfaces.configs import this_machine
from manyfaces.configs.load import load
from manyfaces.configs.schema import Config
from manyfaces.train.folder import RunFolder
from manyfaces.train.precision import settled, with_precision
from manyfaces.train.run_identity import FINGERPRINT, write_identity

XEON = "processor\t: 0\nflags\t\t: fpu sse avx2 avx512f avx512_bf16 amx_bf16\n"
EPYC = "processor\t: 0\nflags\t\t: fpu sse avx2 bmi1\nbugs\t\t: avx512f\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("told", "has"), [(XEON, True), (EPYC, False), (GRAVITON, True), ("", False)]
)
def test_the_processor_tells_whether_it_has_bfloat16(told: str, has: bool) -> None:
    assert this_machine.has_bfloat16(told) is has


@pytest.mark.parametrize(
    ("asked", "has", "gpus", "settles", "line"),
    [
        ("auto", True, "0", "bfloat16", "auto is bfloat16 here"),
        ("auto", False, "0", "float32", "auto is float32 here"),
        ("auto", False, "1", "bfloat16", "auto is bfloat16 here"),
        ("bfloat16", False, "0", "bfloat16", "give train.precision=float32"),
        ("bfloat16", True, "0", "bfloat16", ""),
        ("bfloat16", False, "1", "bfloat16", ""),
        ("float32", True, "0", "float32", ""),
    ],
)
def test_a_run_that_begins_takes_that_of_its_machine(
    asked: str,
    has: bool,
    gpus: str,
    settles: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(this_machine, "computes_bfloat16", lambda: has)
    config = small(tmp_path, f"train.precision={asked}", f"cluster.gpus_per_worker={gpus}")
    told: list[str] = []
    assert settled(config, RunFolder.of(config), told.append) == settles
    assert line in "".join(told)
    assert len(told) == bool(line)


@pytest.mark.parametrize("began", ["float32", "bfloat16"])
@pytest.mark.parametrize("has", [False, True])
def test_a_run_that_goes_on_keeps_its_own(
    began: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "computes_bfloat16", lambda: began == "bfloat16")
    config, told = small(tmp_path, "train.precision=auto"), list[str]()
    folder = RunFolder.of(config)
    first = with_precision(config, settled(config, folder, told.append))
    folder.path.mkdir(parents=True)
    write_identity(folder, first, {FINGERPRINT: "of the dataset"})
    monkeypatch.setattr(this_machine, "computes_bfloat16", lambda: has)
    told.clear()
    assert settled(config, folder, told.append) == began
    assert not told


def small(tmp_path: Path, *words: str) -> Config:
    return load("demo", [f"run.dir={tmp_path}", "run.name=run", *words])
