"""`make gpu` where there is no GPU: it says so, and its parts can be tried."""

import importlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
]
ROOT = Path(__file__).resolve().parents[2]
PARTS = ("tests", "head", "decode", "backbone", "job")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "bench"))
    return importlib.import_module("bench_gpu")


def test_make_gpu_says_that_there_is_no_gpu() -> None:
    ended = subprocess.run(
        ["make", "gpu", "BIN=none", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert said[0].startswith(f"error: no GPU: torch {torch.__version__} sees none")


def test_every_part_is_tried_with_tiny_sizes(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "tests/bench/bench_gpu.py", "--cpu", "--json", str(file)]
    command += ["--minutes", "40"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts = {part["name"]: part for part in json.loads(file.read_text())["parts"]}
    assert tuple(parts) == PARTS
    rows = {name: {row["what"]: row for row in part["rows"]} for name, part in parts.items()}
    assert "0 failed" in rows["tests"]["tests passed"]["detail"]
    ours = [row for what, row in rows["head"].items() if "manyfaces" in what]
    assert len(ours) == 4 * 3
    assert all(row["value"] is not None for row in ours), "one of ours is wrong"
    assert {"flat", "peaked"} == {row["what"].split(":")[0].split(", ")[-1] for row in ours}
    assert len(rows["backbone"]) == 1 + 5 + 3
    assert all(row["value"] for row in rows["backbone"].values())
    assert set(rows["job"]) == {"input path", "backbone", "objective", "whole job"}
    for name in PARTS:
        assert name in ended.stdout
        assert parts[name]["ended"] == ""


TELLS = """
import json, sys, time
print("a library's own line")
print(json.dumps({"what": "first", "value": 1.0, "unit": "s", "detail": ""}), flush=True)
"""


def test_a_part_costs_the_others_nothing(bench: ModuleType) -> None:
    end, stop = time.monotonic() + 60, threading.Event()

    def part(program: str, limit_s: float = 30) -> object:
        made = bench.Part("part", limit_s, ["-c", TELLS + program], bench.row_of)
        bench.run(made, end, stop)
        return made

    slow = part("import subprocess\nsubprocess.run(['sleep', '77.25'])", 2)
    wrong = part("raise ValueError('no card')")
    well = part("")
    late = bench.Part("late", 30, ["-c", TELLS], bench.row_of)
    bench.run(late, time.monotonic(), stop)
    for each in (slow, wrong, well):
        assert list(each.rows) == ["first"]
    assert slow.ended == "stopped after 2 s"
    assert wrong.ended == "ended with 1: ValueError: no card"
    assert (well.ended, late.ended) == ("", "not run: the time was over")
    left = [p for p in psutil.process_iter(["cmdline"]) if "77.25" in (p.info["cmdline"] or [])]
    assert not left, "what a part has started ends with it"


def test_what_there_is_is_shown_when_it_is_stopped(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "tests/bench/bench_gpu.py", "--cpu", "--json", str(file)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            while "head" not in process.stderr.readline():
                assert process.poll() is None
            process.terminate()
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "stopped; this is what there is" in err
    assert "tests passed" in out
    assert [part["ended"] for part in json.loads(file.read_text())["parts"]] == [
        "",
        "stopped",
        *["not run: the time was over"] * 3,
    ]


def test_a_row_that_cannot_be_measured_is_told(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    told = importlib.import_module("told_rows")

    def fails() -> object:
        raise RuntimeError("CUDA error: out of luck\nmore lines")

    told.attempt("a step", fails)
    rows = bench.row_of(capsys.readouterr().out)
    assert rows["a step"]["value"] is None
    assert rows["a step"]["detail"] == "failed: RuntimeError: CUDA error: out of luck"
