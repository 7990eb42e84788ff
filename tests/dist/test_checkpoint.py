"""Checkpoints: whole or not there, read at any world size, corrupt bytes found, disk full told, old
ones kept until newer ones stand."""

import contextlib
import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from launcher import run_ranks
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.configs.split import class_share
from manyfaces.train.checkpoint import retention, sharded
from manyfaces.train.checkpoint.choice import chosen
from manyfaces.train.checkpoint.finder import find, load_parts
from manyfaces.train.checkpoint.head_files import HeadFiles, SubCentres
from manyfaces.train.checkpoint.layout import candidates, newest, read_backbone
from manyfaces.train.checkpoint.retention import retain
from manyfaces.train.checkpoint.snapshot import Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer, Hooks
from manyfaces.train.objectives.objective import HeldByRank0, ShardedRows

CLASSES, DIM = 11, 4


STATE = RunState(Config(model=MobileFaceNet()), "fingerprint", CLASSES, seed=3)


def shard(rank: int, world: int, classes: int = CLASSES) -> slice:
    return slice(*class_share(classes, rank, world))


def rows(step: int, classes: int = CLASSES) -> torch.Tensor:
    return torch.arange(classes * DIM, dtype=torch.float32).reshape(classes, DIM) + 1000 * step


def head_state(step: int, classes: int) -> dict[str, torch.Tensor]:
    """Of all classes: matrices and vectors, 16 bits and 32."""
    rows_CD = rows(step, classes)
    return {
        "rows": rows_CD,
        "momentum": -rows_CD,
        "lengths": rows_CD[:, 0],
        "rows.1": (rows_CD % 1000).half(),
    }


def snapshot(step: int, classes: int = CLASSES) -> Snapshot:
    rank, world = dist.get_rank(), dist.get_world_size()
    here = shard(rank, world, classes)
    whole = {"w": torch.full((3,), float(step))} if rank == 0 else {}
    head = {name: tensor[here].clone() for name, tensor in head_state(step, classes).items()}
    teacher = HeldByRank0({"t": torch.full((2,), float(step))})
    parts = {"head": ShardedRows(head, classes), "teacher": teacher}
    numbers = {"head": {"mean": step + 0.5}}
    state = STATE.at(step=step, position=10 * step, num_classes=classes, numbers=numbers)
    return Snapshot(state, whole, whole, parts)


def checkpointer(folder: Path, keep: int = 3, **settings: Any) -> Checkpointer:
    """Stops at the first failure, unless told otherwise."""
    return Checkpointer(folder, Checkpoint(**{"keep": keep, "max_failures": 1} | settings))


def save(folder: Path, steps: list[int], keep: int = 3, classes: int = CLASSES) -> None:
    saver = checkpointer(folder, keep)
    for step in steps:
        saver.save(snapshot(step, classes))
    saver.wait()


def load(folder: Path, classes: int = CLASSES) -> tuple[int, str]:
    loader = checkpointer(folder)
    found = find(folder, None, loader.group)
    assert found is not None
    step = found.state.step
    here = shard(dist.get_rank(), dist.get_world_size(), classes)
    expected = {name: tensor[here] for name, tensor in head_state(step, classes).items()}
    head = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}
    teacher = {"t": torch.zeros(2)}
    parts = {"head": ShardedRows(head, classes), "teacher": HeldByRank0(teacher)}
    load_parts(found.path, parts, loader.group)
    assert all(torch.equal(head[name], tensor) for name, tensor in expected.items())
    assert torch.equal(teacher["t"], torch.full((2,), float(step)))
    assert torch.equal(read_backbone(found.path)["w"], torch.full((3,), float(step)))
    assert found.state.numbers == {"head": {"mean": step + 0.5}}
    return step, found.why


def save_and_load_here(folder: Path) -> None:
    save(folder / "many", [1, 2, 3, 4, 5], keep=2)
    assert load(folder / "many")[0] == 5
    save(folder / "few", [7], classes=2)
    assert load(folder / "few", classes=2)[0] == 7
    disk_full(folder / "full")
    write_failure(folder / "torn")
    taken_over(folder / "taken")
    for background in (True, False):
        training_goes_on(folder / f"background {background}", background)
    not_finite(folder / "infinite")
    failure_after_commit(folder / "unrecorded")
    leftover(folder / "left")
    rotten_ahead(folder / "rotten")


def dcp_head(classes: int) -> tuple[dict[str, torch.Tensor], dict[str, DTensor]]:
    """This rank's rows of the state of a head, all NaN, and the same as torch's checkpoints have
    them."""
    mesh = DeviceMesh.from_group(dist.group.WORLD, "cpu")
    here = shard(dist.get_rank(), dist.get_world_size(), classes)
    mine, whole = {}, {}
    for name, tensor in head_state(0, classes).items():
        mine[name] = torch.full_like(tensor[here], torch.nan)
        like, place = torch.empty(tensor.shape, device="meta"), [Shard(0)]
        whole[name] = DTensor.from_local(
            mine[name], mesh, place, run_check=False, shape=like.shape, stride=like.stride()
        )
    return mine, whole


def torch_reads_and_is_read(folder: Path, classes: int) -> None:
    """torch.distributed.checkpoint reads a head, in files of a row or two, and what it writes is
    read, as earlier checkpoints have it."""
    here = shard(dist.get_rank(), dist.get_world_size(), classes)
    expected = {name: tensor[here] for name, tensor in head_state(3, classes).items()}
    if dist.get_rank() == 0:
        (folder / "ours").mkdir(parents=True)
    dist.barrier()
    real, sharded.FILE_BYTES = sharded.FILE_BYTES, 40
    try:
        sharded.write_rows(folder / "ours", expected, here.start, dist.get_rank())
    finally:
        sharded.FILE_BYTES = real
    dist.barrier()
    mine, whole = dcp_head(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's about itself
        dcp.load(whole, storage_reader=HuggingFaceStorageReader(str(folder / "ours")))
        assert all(torch.equal(mine[name], tensor) for name, tensor in expected.items())
        writer = HuggingFaceStorageWriter(str(folder / "theirs"), save_distributed=True)
        dcp.save(whole, storage_writer=writer)
    read = {name: torch.full_like(tensor, torch.nan) for name, tensor in expected.items()}
    sharded.load_rows(sorted((folder / "theirs").iterdir()), read, here.start)
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    # In another dtype, and with rows that no file has.
    other = {"rows": torch.zeros(expected["rows"].shape, dtype=torch.float64)}
    sharded.load_rows(sorted((folder / "ours").iterdir()), other, here.start)
    assert torch.equal(other["rows"], expected["rows"].double())
    with pytest.raises(UserError, match="has not all rows of 'rows', 1 of 1 are missing"):
        sharded.load_rows(sorted((folder / "ours").iterdir()), {"rows": rows(0, 1)}, classes)


@pytest.mark.parametrize("classes", [CLASSES, 1])
def test_torch_reads_what_is_written_and_is_read(classes: int, tmp_path: Path) -> None:
    run_ranks(2, torch_reads_and_is_read, tmp_path, classes)


def load_both(folder: Path) -> None:
    assert load(folder / "many")[0] == 5
    assert load(folder / "few", classes=2)[0] == 7


def disk_full(folder: Path) -> None:
    """The check before writing: every rank raises alike, and what stands stays."""
    saver = checkpointer(folder)
    saver.save(snapshot(1))
    saver.wait()
    real, shutil.disk_usage = shutil.disk_usage, lambda _: type("Usage", (), {"free": 100})()  # type: ignore[assignment, misc]
    try:
        with pytest.raises(
            UserError,
            match=r"checkpoint of step 2 FAILED \(disk full: needs .* MB, free 0\.0 MB, at .*full\),"
            r" 1 in a row .* checkpoint is step-00000001; free some space there .* to resume",
        ):
            save_whole(saver, 2)
    finally:
        shutil.disk_usage = real
    assert load(folder)[0] == 1


def write_failure(folder: Path) -> None:
    """A write that fails on one rank alone is told on all, and leaves no checkpoint behind."""
    saver = checkpointer(folder)
    saver.save(snapshot(1))
    saver.wait()
    with failing_disk(errno.EIO):
        saver.save(snapshot(2))
        with pytest.raises(
            UserError,
            match=r"checkpoint of step 2 FAILED \(.*Input/output error at .*safetensors\)",
        ):
            saver.wait()
    assert load(folder)[0] == 1


def taken_over(folder: Path) -> None:
    """A run that another process has taken over meanwhile is no failed write: nothing is committed,
    nothing is recorded in its folder, and the next wait ends on all ranks."""
    told: list[str] = []
    lost: list[str] = []

    def may_write() -> None:
        if lost:
            raise UserError(lost[0])

    hooks = Hooks(failed=lambda step, message: told.append(message))
    saver = Checkpointer(folder, Checkpoint(max_failures=3), hooks, may_write)
    saver.save(snapshot(1))
    saver.wait()
    write_local = saver._write_local

    def slow(*given: Any) -> Any:
        lost.append("another process has it")
        return write_local(*given)

    saver._write_local = slow  # type: ignore[method-assign]
    saver.save(snapshot(2))
    with pytest.raises(UserError, match="another process has it"):
        saver.wait()
    assert told == []
    assert [each.step for each in candidates(folder) if each.fault is None] == [1]


@contextlib.contextmanager
def failing_disk(number: int) -> Iterator[None]:
    """The last rank's writes fail, once some bytes are written."""
    real = os.write

    def write(descriptor: int, part: memoryview) -> int:
        if dist.get_rank() == dist.get_world_size() - 1:
            real(descriptor, part[:5])
            raise OSError(number, os.strerror(number))
        return real(descriptor, part)

    os.write = write  # type: ignore[assignment]
    try:
        yield
    finally:
        os.write = real


def save_whole(saver: Checkpointer, step: int, *, last: bool = False) -> None:
    saver.save(snapshot(step), last=last)
    saver.wait()


def training_goes_on(folder: Path, background: bool) -> None:
    """After a write that failed the next one is tried, and only as many in a row as are allowed
    stop the run; the last one of a run must not fail. All ranks agree, and nothing is left over."""
    told: list[tuple[int, str]] = []
    settings = Checkpoint(max_failures=2, background=background)
    saver = Checkpointer(folder, settings, Hooks(failed=lambda *each: told.append(each)))
    with failing_disk(errno.ENOSPC):
        save_whole(saver, 1)
    save_whole(saver, 2)
    with failing_disk(errno.ENOSPC):
        save_whole(saver, 3)
        dist.barrier()
        assert [path.name for path in folder.iterdir()] == ["step-00000002"]
        with pytest.raises(UserError, match=r"step 4 FAILED .*, 2 in a row .* step-00000002; free"):
            save_whole(saver, 4)
    assert [step for step, _ in told] == [1, 3]
    pattern = (
        r"step 3 FAILED \(.*disk full: needs .* MB, free .* MB, at .*/step-.*\), training goes"
    )
    assert re.search(pattern, told[1][1])
    assert told[1][1].endswith("the last good checkpoint is step-00000002")
    assert load(folder)[0] == 2
    saver = Checkpointer(folder, settings)
    with (
        failing_disk(errno.EDQUOT),
        pytest.raises(UserError, match=r"step 5 FAILED \(.*disk full.*\): the last of the run; .*"),
    ):
        save_whole(saver, 5, last=True)


def not_finite(folder: Path) -> None:
    """One infinity in what one rank holds is never committed, and all ranks say which tensor."""
    saver = checkpointer(folder)
    saver.save(snapshot(1))
    last = dist.get_rank() == dist.get_world_size() - 1
    for name in ("head", "backbone"):
        bad = snapshot(2)
        if name == "head" and last:
            bad.objective["head"].tensors["rows.1"][0, 1] = torch.inf
        if name == "backbone" and dist.get_rank() == 0:
            bad = replace(bad, backbone={"bn.running_var": torch.tensor([1, -torch.inf])})
        saver.save(bad)
        with pytest.raises(UserError) as told:
            saver.wait()
        assert re.search(
            r"head: rows\.1 is not|safetensors: bn\.running_var is not", str(told.value)
        )
        assert re.search(r"the last good one is .*step-00000001; lower train\.opt", str(told.value))
        saver._error = None
    dist.barrier()
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]


def failure_after_commit(folder: Path) -> None:
    """What rank 0 does alone after the commit stops all ranks, none waits, and the checkpoint is
    not called unwritten."""

    def fail(step: int, path: Path) -> None:
        raise OSError(116, "Stale file handle")

    saver = Checkpointer(folder, Checkpoint(max_failures=1), Hooks(committed=fail))
    saver.save(snapshot(1))
    with pytest.raises(
        UserError,
        match=r"step 1 is committed, but .*Stale file handle at .*; the last good .* is step-00000001;",
    ):
        saver.wait()
    assert load(folder)[0] == 1


def leftover(folder: Path) -> None:
    """What a killed write left is gone before the free space is measured; what is named otherwise
    stays."""
    mine = ["step-00000001-best", "step-00000009.tmp", "step-1.tmp-abcd", "step-00000001.aside-ab"]
    if dist.get_rank() == 0:
        for name in ["step-00000001.tmp-abcd", *mine]:
            (folder / name).mkdir(parents=True)
    dist.barrier()
    saver = checkpointer(folder)
    real = shutil.disk_usage

    def free(path: Path) -> Any:
        left = dist.get_rank() == 0 and (folder / "step-00000001.tmp-abcd").exists()
        return type("Usage", (), {"free": 100 if left else 1 << 30})()

    shutil.disk_usage = free  # type: ignore[assignment]
    try:
        save_whole(saver, 1)
    finally:
        shutil.disk_usage = real
    dist.barrier()
    assert sorted(path.name for path in folder.iterdir()) == sorted(["step-00000001", *mine])


def rotten_ahead(folder: Path) -> None:
    """A newer checkpoint that this session found corrupt never takes the place of a good one, nor
    does one that nobody compared, and another format's stays when its step is written again."""
    save(folder, [1, 2, 9])
    if dist.get_rank() == 0:
        damaged(folder / "step-00000009", "flip")
        shutil.copytree(folder / "step-00000001", folder / "step-00000003")
        damaged(folder / "step-00000003", "newer format")
        shutil.copytree(folder / "step-00000001", folder / "step-00000099-copy")
    dist.barrier()
    saver = checkpointer(folder, keep=1)
    found = find(folder, None, saver.group)
    assert found is not None
    assert found.path.name == "step-00000002"
    saver.began_with(found.path)
    saver.save(snapshot(3))
    saver.wait()
    dist.barrier()
    names = sorted(path.name.partition(".aside")[0] for path in folder.iterdir())
    assert names == ["step-00000003", "step-00000003", "step-00000099-copy"]
    assert load(folder)[0] == 3


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints written and read back by 1, 2 and 3 ranks."""
    folders = {world: tmp_path_factory.mktemp(f"world{world}") for world in (1, 2, 3)}
    for world, folder in folders.items():
        run_ranks(world, save_and_load_here, folder)
    return folders


def read_all(folders: list[Path]) -> None:
    for folder in folders:
        load_both(folder)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_world_size_reads_any_other(written, world: int) -> None:
    run_ranks(world, read_all, list(written.values()))


def test_the_newest_are_kept(written) -> None:
    assert sorted(p.name for p in (written[2] / "many").iterdir()) == [
        "step-00000004",
        "step-00000005",
    ]


def test_only_safetensors_and_json_are_written(written) -> None:
    suffixes = {p.suffix for folder in written.values() for p in folder.rglob("*") if p.is_file()}
    assert suffixes == {".safetensors", ".json"}


@pytest.mark.parametrize(
    ("name", "classes", "step", "some"), [("many", 11, 5, [10, 0, 3, 3]), ("few", 2, 7, [1])]
)
def test_some_classes_centres_are_read_without_any_rank(
    written, name: str, classes: int, step: int, some: list[int]
) -> None:
    state = head_state(step, classes)
    expected = torch.stack(
        [torch.nn.functional.normalize(state[plane].float())[some] for plane in ("rows", "rows.1")],
        1,
    )
    for folder in written.values():
        centres = SubCentres(HeadFiles(folder / name / f"step-{step:08d}", classes))
        assert torch.equal(centres.take(np.array(some)), expected)
        with pytest.raises(UserError, match=f"is not of {classes + 1} classes"):
            HeadFiles(folder / name / f"step-{step:08d}", classes + 1)


def damaged(path: Path, how: str) -> None:
    head = next((path / "head").iterdir())
    if how == "flip":
        body = bytearray(head.read_bytes())
        body[-3] ^= 4
        head.write_bytes(body)
    elif how == "cut":
        head.write_bytes(head.read_bytes()[:-1])
    elif how == "gone":
        (path / "optimizer.safetensors").unlink()
    elif how == "unlisted":
        shutil.copyfile(head, path / "head" / "older.safetensors")
    elif how == "torn commit":
        (path / "COMMIT.json").write_text((path / "COMMIT.json").read_text()[:50])
    elif how == "no commit":
        (path / "COMMIT.json").unlink()
    elif how == "killed while writing":
        path.rename(path.with_name(path.name + ".tmp-abcd"))
    elif how == "newer format":
        commit = json.loads((path / "COMMIT.json").read_text())
        (path / "COMMIT.json").write_text(json.dumps(commit | {"format": 99}))


DAMAGES = [
    "flip",
    "cut",
    "gone",
    "torn commit",
    "no commit",
    "killed while writing",
    "newer format",
    "unlisted",
]


def find_before_damage(folders: list[Path]) -> list[str]:
    whys = []
    for folder in folders:
        step, why = load(folder)
        assert step == 4
        whys.append(why)
    return whys


def test_a_damaged_checkpoint_is_passed_over_with_a_word(written, tmp_path: Path) -> None:
    folders = []
    for how in DAMAGES:
        folders.append(Path(shutil.copytree(written[2] / "many", tmp_path / how)))
        damaged(folders[-1] / "step-00000005", how)
    for whys in run_ranks(2, find_before_damage, folders):
        assert all("passed over step-00000005" in why for why in whys)
        assert "digest differs" in whys[0]
        assert "not committed" in whys[5]
        assert "format 99" in whys[6]
        assert "head/older.safetensors: is not one of the files that COMMIT.json lists" in whys[7]


def find_nothing_intact(folder: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"no checkpoint is intact: step-00000005 .*, step-00000004 .*; restore one, or move them away",
    ):
        find(folder, None, checkpointer(folder).group)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(
    written, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written[2] / "many", tmp_path / "copy"))
    damaged(folder / "step-00000005", "flip")
    damaged(folder / "step-00000004", "gone")
    run_ranks(2, find_nothing_intact, folder)
    damaged(folder / "step-00000005", "newer format")
    retain(folder, Checkpoint.model_construct(keep=0), {}, ())
    assert [p.name for p in folder.iterdir()] == ["step-00000005"]


def test_retention_never_counts_a_damaged_one(written, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written[2] / "many", tmp_path / "copy"))
    (folder / "step-00000005" / "COMMIT.json").unlink()
    retain(folder, Checkpoint(keep=1), {}, [folder / "step-00000004"])
    assert [p.name for p in folder.iterdir()] == ["step-00000004"]
    good = newest(folder)
    assert good is not None
    assert good.name == "step-00000004"


def test_retention_survives_a_failed_delete(
    written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(written[2] / "many", tmp_path / "copy"))
    monkeypatch.setattr(retention.shutil, "rmtree", lambda _: (_ for _ in ()).throw(OSError))
    retain(folder, Checkpoint(keep=1), {}, [])
    assert len(candidates(folder)) == 2


def test_no_checkpoint_is_an_error_for_people(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no committed checkpoint"):
        chosen(run)
