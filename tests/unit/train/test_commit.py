"""Only what a checkpoint's COMMIT.json lists is read, only as it was committed, and nothing else is
ever removed or written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_head import made_head, write_checkpoint, write_commit

from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.data.dataset.names import Names
from manyfaces.models.backbones.init import read_weights
from manyfaces.train.checkpoint.choice import chosen
from manyfaces.train.checkpoint.commit import Condition, check_commit, corrupt_file
from manyfaces.train.checkpoint.finite import refuse_not_finite
from manyfaces.train.checkpoint.head_files import HeadFiles
from manyfaces.train.checkpoint.layout import (
    candidates,
    make_way,
    newest,
    read_backbone,
    read_beside_backbone,
    read_optimizer,
)
from manyfaces.train.checkpoint.network import load_backbone
from manyfaces.train.checkpoint.retention import retain
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.curation.head_edit import remove
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.trained import load_trained
from manyfaces.train.initial_weights import initial_file

NAMES = ["anna", "bob", "carl"]


def checkpoint(path: Path) -> Path:
    return write_checkpoint(path, NAMES, made_head(3, 1))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "run" / "checkpoints" / "step-00000007")


def edited(here: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads((here / "COMMIT.json").read_text())
    change(told)
    (here / "COMMIT.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["files"]["state.json"].pop("sha256"),
        lambda told: told["files"]["state.json"].update(sha256="abc"),
        lambda told: told["files"]["state.json"].update(bytes="9"),
        lambda told: told["files"].clear(),
        lambda told: told.update(files=[]),
        lambda told: told.update(files=None),
        lambda told: told.pop("step"),
        lambda told: told.pop("format"),
        lambda told: told.update(format="1"),
        lambda told: told["files"].update({"../../x": told["files"]["state.json"]}),
        lambda told: told["files"].update({"/etc/passwd": told["files"]["state.json"]}),
        lambda told: told["files"].update({"head/../state.json": told["files"]["state.json"]}),
    ],
)
def test_a_commit_that_does_not_fit_is_one_line(here: Path, change: Any, tmp_path: Path) -> None:
    edited(here, change)
    fault, corrupt = check_commit(here), corrupt_file(here)
    assert fault is not None
    assert corrupt is not None
    assert fault.condition is Condition.DAMAGED
    assert "COMMIT.json is damaged" in str(fault)
    assert newest(here.parent) is None
    with pytest.raises(UserError, match=r"^\S*step-00000007: COMMIT.json is damaged: .*restore it"):
        remove(here, tmp_path / "out" / "edited", Names.parse(b"bob"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("body", [b"", b"7", b"[]", b"null", b"\xff\xfe", b'{"format": 1'])
def test_a_commit_that_is_none_is_one_line(here: Path, body: bytes) -> None:
    (here / "COMMIT.json").write_bytes(body)
    with pytest.raises(UserError, match=r"COMMIT\.json is (torn|damaged)"):
        chosen(here)


def test_a_commit_that_is_a_folder_is_one_line(here: Path) -> None:
    (here / "COMMIT.json").unlink()
    (here / "COMMIT.json").mkdir()
    assert "COMMIT.json cannot be read" in str(check_commit(here))
    assert newest(here.parent) is None


def flip(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)


READERS: dict[str, list[Callable[[Path], Any]]] = {
    "backbone.safetensors": [
        read_backbone,
        lambda path: initial_file(str(path)),
        lambda path: initial_file(str(path / "backbone.safetensors")),
        lambda path: initial_file(str(path.parent.parent)),
        lambda path: open_encoder(path / "backbone.safetensors", torch.device("cpu")),
        lambda path: load_backbone(path, RunState.read(path)),
        load_trained,
        lambda path: remove(path, path.parent.parent.parent / "out", Names.parse(b"bob")),
    ],
    "optimizer.safetensors": [read_optimizer],
    "network.safetensors": [read_beside_backbone],
    "state.json": [RunState.read, load_trained],
    "head/shard-00002-model-00001-of-00001.safetensors": [lambda path: HeadFiles(path, 3)],
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_compares_the_bytes_of_what_it_reads(here: Path, name: str) -> None:
    shutil.copyfile(here / "backbone.safetensors", here / "network.safetensors")
    write_commit(here)
    assert read_beside_backbone(here).keys() == {"w"}
    flip(here / name)
    for read in READERS[name]:
        with pytest.raises(UserError, match=f"{name}: digest differs; restore it, or give another"):
            read(here)


def test_a_file_that_is_not_listed_is_never_read(here: Path) -> None:
    shutil.copyfile(here / "backbone.safetensors", here / "network.safetensors")
    for read in (read_beside_backbone, RunState.read, lambda path: HeadFiles(path, 3), chosen):
        with pytest.raises(UserError, match=r"network\.safetensors: is not one of the files that"):
            read(here)
    assert newest(here.parent) is None
    (here / "network.safetensors").unlink()
    assert read_beside_backbone(here) == {}
    assert read_weights(initial_file(str(here))).keys() == {"w"}


def test_a_run_takes_no_folder_of_another_name_for_a_checkpoint(here: Path) -> None:
    others = ["step-00000099-copy", "step-00000010-best", "step-99", "step-00000099.bad-ab"]
    for name in [*others, "step-100000000"]:
        checkpoint(here.parent / name)
    assert [each.path.name for each in candidates(here.parent)] == ["step-100000000", here.name]
    retain(here.parent, Checkpoint(keep=1), {}, [here])
    left = {path.name for path in here.parent.iterdir()}
    assert left == {here.name, *others} - {"step-00000099.bad-ab"}


def test_retention_keeps_what_was_compared_before_what_was_not(here: Path) -> None:
    folder = here.parent
    ahead, behind, foreign, torn, noted = (
        checkpoint(folder / f"step-{step:08d}") for step in (9, 5, 10, 11, 12)
    )
    edited(foreign, lambda told: told.update(format=9))
    (torn / "COMMIT.json").unlink()
    (noted / "notes.txt").write_text("best so far")
    retain(folder, Checkpoint(keep=3), {}, [here])
    assert len(list(folder.iterdir())) == 6  # nothing good is there in place of the torn one
    (here / "notes.txt").write_text("")
    retain(folder, Checkpoint(keep=2), {}, [here])
    assert here.exists()
    (here / "notes.txt").unlink()
    retain(folder, Checkpoint(keep=1), {}, [here])
    assert not ahead.exists()
    assert not behind.exists()
    assert {path.name for path in folder.iterdir()} == {here.name, foreign.name, noted.name}


@pytest.mark.parametrize(("how", "kind"), [("format", "aside"), ("notes", "aside"), ("cut", "bad")])
def test_what_stands_in_the_way_is_kept_unless_it_is_damaged(
    here: Path, how: str, kind: str
) -> None:
    if how == "format":
        edited(here, lambda told: told.update(format=9))
    elif how == "notes":
        (here / "notes.txt").write_text("best so far")
    else:
        (here / "state.json").write_text("")
    make_way(here, "ab12")
    assert [path.name for path in here.parent.iterdir()] == [f"step-00000007.{kind}-ab12"]


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_not_finite_is_found(number: float, dtype: torch.dtype) -> None:
    tensor = torch.full((5, 3), torch.finfo(dtype).max, dtype=dtype)
    good = [("steps", torch.ones(3, dtype=torch.int64)), ("none", tensor[:0]), ("rows", tensor)]
    refuse_not_finite(good)
    tensor[2, 1] = number
    with pytest.raises(UserError, match=r"^rows is not finite$"):
        refuse_not_finite(good)
