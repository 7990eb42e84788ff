"""What a worker prints is in its rank's log, whoever prints it, and its end can be shown."""

import subprocess
import sys
from pathlib import Path

from manyfaces.cluster.rank_logs import last_lines, log_path

PRINTS = """
import os, sys
from pathlib import Path
from manyfaces.cluster.rank_logs import print_to
folder, word = Path(sys.argv[1]), sys.argv[2]
print("before")
print_to(folder, 3, 8)
print(f"{word} of Python", flush=True)
os.write(2, f"{word} of a C library\\n".encode())
raise ValueError(f"{word} of an error")
"""


def work(folder: Path, word: str) -> str:
    command = [sys.executable, "-c", PRINTS, str(folder), word]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_a_log_has_all_that_the_process_printed_and_each_start(tmp_path: Path) -> None:
    assert work(tmp_path, "first") == "before\n"
    assert last_lines(tmp_path, 3)[-1] == "ValueError: first of an error"
    work(tmp_path, "second")
    lines = log_path(tmp_path, 3).read_text().splitlines()
    assert [line.split()[:2] for line in lines if "rank 3 of 8 on " in line] == [
        ["manyfaces", "started:"]
    ] * 2
    printed = {
        f"{word} of {what}" for word in ("first", "second") for what in ("Python", "a C library")
    }
    assert printed < {*lines}
    shown = last_lines(tmp_path, 3)
    assert shown[:2] == ["second of Python", "second of a C library"]
    assert not any("first" in line for line in shown)
    assert last_lines(tmp_path, 3, count=1) == ["ValueError: second of an error"]


def test_what_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert last_lines(tmp_path, 0) == []
    log_path(tmp_path, 1).write_text("manyfaces started: now\n")
    assert last_lines(tmp_path, 1) == []
    log_path(tmp_path, 2).write_text("\n".join(map(str, range(100_000))))
    assert last_lines(tmp_path, 2) == [str(number) for number in range(99_950, 100_000)]
