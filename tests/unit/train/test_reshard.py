"""`manyfaces checkpoint reshard` gives what other ranks would have written, to the byte; torch's own
reader finds every row in it, and nothing is written of a damaged checkpoint."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_head import made_head, read_head, write_checkpoint, write_commit
from torch import Tensor

from manyfaces.configs.split import class_share
from manyfaces.train.checkpoint import reshard as module
from manyfaces.train.checkpoint import sharded
from manyfaces.train.checkpoint.commit import committed, corrupt_file
from manyfaces.train.checkpoint.edit_lock import sweep_edits
from manyfaces.train.checkpoint.reshard import reshard
from manyfaces.train.checkpoint.sharded import load_rows, write_rows
from manyfaces.train.checkpoint.tensor_file import stored_tensors
from manyfaces.train.cli.main import main


def tensors(classes: int, sub_centres: int, seed: int = 1) -> dict[str, Tensor]:
    """Rows in 16 bits, moments in 32, whole numbers: as optimisers keep them."""
    random = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {"steps": torch.randint(1, 99, (classes,), generator=random)}
    for k in range(sub_centres):
        tail = f".{k}" if k else ""
        made[f"rows{tail}"] = torch.randn(classes, 3, generator=random).bfloat16()
        made[f"exp_avg{tail}"] = torch.randn(classes, 3, generator=random)
    return made


def written(path: Path, whole: Mapping[str, Tensor], ranks: int) -> Path:
    """A committed checkpoint whose head and whose second sharded part these ranks wrote."""
    classes = len(whole["rows"])
    write_checkpoint(path, None, made_head(classes, 1))
    shutil.rmtree(path / "head")
    for part in ("head", "other"):
        (path / part).mkdir()
        for rank in range(ranks):
            lo, hi = class_share(classes, rank, ranks)
            rows = {name: tensor[lo:hi] for name, tensor in whole.items()}
            write_rows(path / part, rows, lo, rank)
    write_commit(path)
    told = json.loads((path / "COMMIT.json").read_text())
    (path / "COMMIT.json").write_text(json.dumps(told | {"world_size": ranks}))
    return path


def bodies(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file() and file.name != "COMMIT.json"
    }


def read_by_rank(path: Path, like: Mapping[str, Tensor], ranks: int) -> dict[str, Tensor]:
    """The head as so many ranks load it."""
    files = sorted((path / "head").iterdir())
    parts: list[dict[str, Tensor]] = []
    for rank in range(ranks):
        lo, hi = class_share(len(like["rows"]), rank, ranks)
        parts.append({name: torch.zeros_like(tensor[lo:hi]) for name, tensor in like.items()})
        load_rows(files, parts[-1], lo)
    return {name: torch.cat([part[name] for part in parts]) for name in like}


@settings(max_examples=20, deadline=None)
@given(
    classes=st.integers(1, 40),
    ranks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sub_centres=st.integers(1, 3),
)
@example(classes=1, ranks=(3, 8), sub_centres=2)
@example(classes=40, ranks=(1, 9), sub_centres=1)
def test_the_copy_is_what_the_other_ranks_would_have_written(classes, ranks, sub_centres) -> None:
    whole = tensors(classes, sub_centres)
    with tempfile.TemporaryDirectory() as folder:
        there = written(Path(folder, "there"), whole, ranks[0])
        here = written(Path(folder, "here"), whole, ranks[1])
        out = Path(folder, "out", "checkpoints", "step-00000007")
        reshard(there, out, ranks[1])
        assert bodies(out) == bodies(here)
        assert committed(out).model_dump() == committed(here).model_dump()
        assert corrupt_file(out) is None
        for name, tensor in read_head(out, whole).items():
            assert torch.equal(tensor, whole[name]), name


@settings(max_examples=8, deadline=None)
@given(
    classes=st.integers(1, 40),
    ranks=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    file_bytes=st.integers(60, 400),
)
def test_rows_in_many_files_are_read_by_any_ranks(classes, ranks, file_bytes) -> None:
    whole = tensors(classes, 2)
    with tempfile.TemporaryDirectory() as folder, patch.object(sharded, "FILE_BYTES", file_bytes):
        out = Path(folder, "out")
        reshard(written(Path(folder, "there"), whole, ranks[0]), out, ranks[1])
        assert corrupt_file(out) is None
        for file in (out / "head").iterdir():
            stored = stored_tensors(file)
            held = sum(torch.empty(each.shape, dtype=each.dtype).nbytes for each in stored)
            assert held <= file_bytes or all(each.shape[0] == 1 for each in stored)
        for name, tensor in read_by_rank(out, whole, ranks[2]).items():
            assert torch.equal(tensor, whole[name]), name


def test_no_more_than_a_file_of_rows_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, most = tensors(5000, 2), 0
    there = written(tmp_path / "there", whole, 3)
    monkeypatch.setattr(sharded, "FILE_BYTES", 4096)
    write = sharded.write_tensors

    def counted(path: Path, parts: Mapping[str, Tensor], metadata: Mapping[str, str]) -> object:
        nonlocal most
        most = max(most, sum(part.untyped_storage().nbytes() for part in parts.values()))
        return write(path, parts, metadata)

    monkeypatch.setattr(sharded, "write_tensors", counted)
    moved: list[int] = []
    reshard(there, tmp_path / "out", 8, moved.append)
    assert 0 < most <= 4096
    held = sum(tensor.nbytes for tensor in whole.values())
    assert module.num_bytes(there) * 0.5 < sum(moved) <= module.num_bytes(there)
    assert held > 20 * 4096


@pytest.mark.parametrize(
    "name", ["backbone.safetensors", "head/shard-00002-model-00001-of-00001.safetensors"]
)
def test_a_damaged_source_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there = written(tmp_path / "run" / "checkpoints" / "step-00000007", tensors(9, 1), 2)
    body = bytearray((there / name).read_bytes())
    body[-1] ^= 1
    (there / name).write_bytes(body)
    assert main(["checkpoint", "reshard", str(there), "--workers", "3"]) == 2
    assert f"{name}: digest differs; restore it" in capsys.readouterr().err
    assert not list(tmp_path.glob("run-for-3/checkpoints/*"))


def test_the_command_line_says_where_it_is_and_refuses_it_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "run" / "checkpoints" / "step-00000007", tensors(9, 1), 2)
    out = tmp_path / "run-for-3" / "checkpoints" / "step-00000007"
    for code in (0, 2):
        assert main(["checkpoint", "reshard", str(tmp_path / "run"), "--workers", "3"]) == code
    told = capsys.readouterr()
    assert f"{out}: 2 -> 3 workers" in told.out
    assert f"error: {out}: is there already" in told.err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    inside = tmp_path / "other" / "checkpoints" / "step-00000008"
    words = ["checkpoint", "reshard", str(tmp_path / "run"), "--workers", "3", str(inside)]
    assert main(words) == 2
    assert "that run would resume from it" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from pathlib import Path
from manyfaces.train.checkpoint import reshard as module
module.commit_folder = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
module.reshard(Path(sys.argv[1]), Path(sys.argv[2]), 3)
"""


def test_what_a_killed_one_left_is_swept(tmp_path: Path) -> None:
    there, out = written(tmp_path / "there", tensors(9, 1), 2), tmp_path / "others" / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(there), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(out.parent.iterdir())) == 2  # its folder and its lock
    assert not out.exists()
    sweep_edits(out.parent)
    assert not list(out.parent.iterdir())
    reshard(there, out, 3)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
