"""All that a GPU is to show, in one table with the card's name: `make gpu`.

    python tests/bench/bench_gpu.py [--minutes 9.5] [--only PART ...] [--json FILE] [--cpu]

Parts: tests (tests/gpu), head (bench_head_gpu.py), decode (bench_decode.py), backbone
(bench_backbone.py) and job (bench_job.py). Each runs in processes of its own with a time limit of
its own, and what it has measured by then stands in the table: a part that fails or is slow costs
the others nothing. When the minutes are over, or on Ctrl-C or SIGTERM, the table has what there is.
FILE (default: build/gpu.json) is written after every part. Nothing is
installed and nothing is downloaded.

Without a GPU it says so and ends with 2; `--cpu` tries the same with tiny sizes, whose figures mean
nothing. It ends with 1 where a part did not end well.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FACES = ("--identities", "100", "--images", "20", "--seed", "1")
FEW_FACES = ("--identities", "10", "--images", "8", "--seed", "1")
GRACE_S = 5.0
"""What the last lines of a part and the table take at most."""
LOOK_EVERY_S = 0.2
# Deterministic products, which the tests ask for, need it before CUDA begins (cuBLAS' manual).
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false"}
LOOK = (
    "import json, torch; n = torch.cuda.device_count(); print(json.dumps({'torch': "
    "torch.__version__, 'gpus': n, 'card': torch.cuda.get_device_name(0) if n else None}))"
)

Rows = dict[str, dict[str, Any]]


@dataclass
class Part:
    """One part of the table."""

    name: str
    limit_s: float
    words: list[str]
    """What runs, after `python`."""
    read: Callable[[str], Rows]
    """The rows of a line that it prints, by what they are of; a later row takes the place of an
    earlier one."""
    rows: Rows = field(default_factory=dict)
    ended: str = "not run: the time was over"
    """How it ended; empty where it ended well."""
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--only", nargs="+", metavar="PART")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu.json", metavar="FILE")
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    machine = look()
    if not machine["gpus"] and not arguments.cpu:
        sys.stderr.write(
            f"error: no GPU: torch {machine['torch']} sees none on this machine; nothing was "
            "measured. --cpu tries the benchmark itself at tiny sizes\n"
        )
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="manyfaces-gpu-") as work:
        parts = parts_of(Path(work), tiny=arguments.cpu)
        parts = [part for part in parts if not arguments.only or part.name in arguments.only]
        for part in [faces_of(Path(work), tiny=arguments.cpu), *parts]:
            run(part, end, stop)
            if part not in parts and part.ended:
                sys.stderr.write(f"faces      {part.ended}\n")  # what needs them then fails
            elif part in parts and not part.ended and not part.rows:
                part.ended = "told nothing"
            write(arguments.json, machine, parts)
    if stop.is_set():
        sys.stderr.write("stopped; this is what there is\n")
    show(machine, parts, tiny=arguments.cpu)
    return 1 if any(part.ended for part in parts) else 0


def look() -> dict[str, Any]:
    """What torch sees, by a process of its own: this one must not open the card."""
    found = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, check=False
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["it said nothing"])[-1]
        sys.exit(f"error: torch cannot be imported by {sys.executable}: {last}")
    seen: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return {**seen, "processor": platform.processor() or platform.machine()}


def parts_of(work: Path, *, tiny: bool) -> list[Part]:
    """The parts in their order: what is most asked for first."""
    small = ["--tiny"] if tiny else []
    faces, rounds = str(work / "faces"), ["--rounds", "1"] if tiny else []
    parts = [
        Part("tests", 120, [str(HERE / "told_tests.py"), str(ROOT / "tests" / "gpu")], row_of),
        Part("head", 130, [str(HERE / "bench_head_gpu.py"), *rounds, *small], row_of),
        Part("decode", 45, [str(HERE / "bench_decode.py"), faces, *rounds, *small], row_of),
        Part("backbone", 150, [str(HERE / "bench_backbone.py"), *small], row_of),
        Part("job", 80, [str(HERE / "bench_job.py"), *job(faces, work, tiny)], rates_of),
    ]
    if tiny:  # the sizes are small, and a machine without a GPU may be slow
        for part in parts:
            part.limit_s *= 5
    return parts


def job(faces: str, work: Path, tiny: bool) -> list[str]:
    """The words of bench_job.py: IResNet-50 on one card, on made faces."""
    words = [
        "pretrain/ms1mv3_r50",
        f"data.path={faces}",
        f"run.dir={work / 'runs'}",
        "data.expect_images=null",
        "data.expect_identities=null",
        "evaluation.pairs=[]",
        "cluster.workers=1",
        "train.batch_size=128",
    ]
    if not tiny:
        return [*words, "--json"]
    less = ["model={kind: mobilefacenet, scale: 1, embedding_dim: 16}", "data.image_px=32"]
    return [*words, *less, "train.batch_size=8", "--steps", "2", "--json"]


def faces_of(work: Path, *, tiny: bool) -> Part:
    """What makes the dataset of the other parts; it has no rows."""
    words = ["-m", "manyfaces.train", "data", "synth", str(work / "faces")]
    return Part("faces", 600 if tiny else 120, [*words, *(FEW_FACES if tiny else FACES)], row_of)


def row_of(line: str) -> Rows:
    row = json.loads(line)
    return {row["what"]: row}


def rates_of(line: str) -> Rows:
    """The rows of bench_job.py's mapping."""
    return {
        what: {"what": what, "value": rate, "unit": "images/s", "detail": ""}
        for what, rate in json.loads(line).items()
    }


def run(part: Part, end: float, stop: threading.Event) -> None:
    """Run a part until it ends, its limit, the end of all or `stop`."""
    limit_s = min(part.limit_s, end - time.monotonic() - GRACE_S)
    if limit_s <= 0 or stop.is_set():
        return
    sys.stderr.write(f"{part.name:<10} at most {limit_s:.0f} s\n")
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *part.words],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        reader = threading.Thread(target=read_rows, args=(process.stdout, part), daemon=True)
        reader.start()
        while process.poll() is None and time.monotonic() < began + limit_s:
            if stop.wait(LOOK_EVERY_S):
                break
        code = process.poll()
        kill(process)
        reader.join(GRACE_S)
        process.stdout.close()
        errors.seek(0)
        said = last_line(errors.read())
    part.seconds = time.monotonic() - began
    if code is None:
        part.ended = "stopped" if stop.is_set() else f"stopped after {limit_s:.0f} s"
    else:
        part.ended = f"ended with {code}: {said}" if code else ""


def read_rows(printed: TextIO, part: Part) -> None:
    """Take the rows from what it prints; other lines are libraries' own."""
    for line in printed:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            part.rows.update(part.read(line))


def kill(process: subprocess.Popen[str]) -> None:
    """End the process and all that it has started in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:200]


def write(file: Path, machine: dict[str, Any], parts: list[Part]) -> None:
    """Write what there is by now."""
    found = [
        {**{k: v for k, v in asdict(part).items() if k != "read"}, "rows": list(part.rows.values())}
        for part in parts
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine, "parts": found}, indent=1) + "\n")


def show(machine: dict[str, Any], parts: list[Part], *, tiny: bool) -> None:
    """The table."""
    card = machine["card"] or "no GPU, tiny sizes: these figures say nothing"
    table = Table("part", "what", "measured", "", title=f"{card}, torch {machine['torch']}")
    table.columns[2].justify = "right"
    for part in parts:
        for row in part.rows.values():
            table.add_row(part.name, row["what"], in_words(row), row["detail"])
        table.add_row(part.name, part.ended or "ended well", f"{part.seconds:,.0f} s", "")
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def in_words(row: dict[str, Any]) -> str:
    """The value with its unit, in three digits or whole numbers."""
    if row["value"] is None:
        return "-"
    digits = ",.0f" if abs(row["value"]) >= 100 else ".3g"
    return f"{row['value']:{digits}} {row['unit']}".strip()


if __name__ == "__main__":
    sys.exit(main())
