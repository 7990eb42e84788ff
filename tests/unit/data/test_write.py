"""The writer of shards: items are made late, and nothing is done twice or left behind after a
kill."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.write import Item, write_dataset
from manyfaces.data.synthetic.faces import encode


def test_items_are_made_when_their_shard_is(tmp_path: Path) -> None:
    made, written = [], []

    class Lazy:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, part: slice) -> list[Item]:
            made.append(part.start)
            assert len(made) - len(written) <= 4
            return [Item(n, str(n), 0) for n in range(10)[part]]

    def read(n: object) -> bytes:
        written.append(n)
        return encode(1, 1, 1)

    assert (
        write_dataset(
            tmp_path / "out", Lazy(), read, ["one"], source={}, shard_images=3, processes=1
        ).num_images
        == 10
    )
    assert made == [0, 3, 6, 9]


def test_a_process_that_is_killed_is_one_line(tmp_path: Path) -> None:
    items = [Item(9, str(n), 0) for n in range(4)]
    with pytest.raises(UserError, match="a process was ended from outside"):
        write_dataset(
            tmp_path / "out", items, os._exit, ["one"], source={}, shard_images=2, processes=2
        )  # type: ignore[arg-type]


SLOWLY = """
import pathlib, sys, time
from manyfaces.data.dataset.write import Item, write_dataset

def read(n):
    time.sleep(0.05)
    return bytes(n)

if __name__ == "__main__":
    items = [Item(n, str(n), 0) for n in range(1, 61)]
    write_dataset(pathlib.Path(sys.argv[1]), items, read, ["one"], source={}, shard_images=4, processes=2)
"""


def test_kill_9_leaves_no_process_and_no_shard_is_done_again(tmp_path: Path) -> None:
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(SLOWLY)
    run = subprocess.Popen([sys.executable, str(script), str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while len(list(out.glob("*.tar"))) < 3:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.02)
    children = [
        int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    ]
    run.kill()
    run.wait()
    assert len(children) >= 2
    while any(_alive(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kept = {path: path.stat().st_ino for path in out.glob("*.tar")}
    assert not (out / "manyfaces.json").exists()
    items = [Item(n, str(n), 0) for n in range(1, 61)]
    assert (
        write_dataset(out, items, bytes, ["one"], source={}, shard_images=4, processes=1).num_images
        == 60
    )  # type: ignore[arg-type]
    assert kept == {path: path.stat().st_ino for path in kept}


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
