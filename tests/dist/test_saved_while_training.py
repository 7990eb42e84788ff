"""Checkpoints of heads that two real ranks train while they are written, against clones of the
state made between two steps."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.configs.split import batch_share
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.checkpoint import copy_on_write, tensor_file
from manyfaces.train.checkpoint.finder import find, load_parts
from manyfaces.train.checkpoint.snapshot import Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer, Hooks
from manyfaces.train.objectives.objective import ShardedRows

C, D, B = 3000, 16, 12
STATE = RunState(Config(model=MobileFaceNet()), "", C, seed=0)


class Trained:
    """Two heads, sampled and dense, and what a checkpoint has to hold of them."""

    def __init__(self, *, placement: str) -> None:
        rows = schema.Rows(optimizer="rowwise", dtype="float16")
        sampled = {"rows": rows, "sample_rate": 0.1, "placement": placement, "sub_centers": 2}
        trees = {"sampled": sampled, "dense": {"rows": schema.Rows(), "chunk_classes": 100}}
        self.heads = {
            name: PartialFC(
                schema.Head.model_validate(tree),
                C,
                D,
                seed=1,
                weight_decay=0.02,
                device=torch.device("cpu"),
                group=dist.group.WORLD,
            )
            for name, tree in trees.items()
        }
        self.number = 0

    def step(self) -> None:
        random = torch.Generator().manual_seed(self.number)
        mine = slice(*batch_share(B, dist.get_rank(), dist.get_world_size()))
        embeddings_BD = torch.randn(B, D, generator=random)
        labels_B = torch.randint(0, C, (B,), generator=random)
        for head in self.heads.values():
            head.prefetch(self.number * B, B)
            head.step(
                embeddings_BD[mine],
                labels_B[mine],
                lr=0.5,
                position=self.number * B,
                batch_size=B,
            )
        self.number += 1

    def parts(self) -> dict[str, ShardedRows]:
        return {
            name: ShardedRows(head.tensors(), C, head.watch) for name, head in self.heads.items()
        }

    def snapshot(self, step: int) -> Snapshot:
        return Snapshot(STATE.at(step=step), {}, {}, self.parts())

    def clone(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.snapshot(0).tensors}


def save_while_training(folder: Path) -> None:
    """Checkpoint after checkpoint, one of which no disk takes, while steps go on; then each is read
    back into other heads."""
    copy_on_write.BLOCK_ROWS, copy_on_write.TOGETHER_BYTES = 8, 1
    tensor_file.PART_BYTES = 1 << 14
    told: list[int] = []
    hooks = Hooks(failed=lambda step, message: told.append(step))
    trained, expected = Trained(placement="host"), {}
    saver = Checkpointer(folder, Checkpoint(keep=9), hooks)
    saver.reserve(trained.snapshot(0))
    for number in range(1, 6):
        trained.step()
        expected[number] = trained.clone()
        with full_disk() if number == 2 else contextlib.nullcontext():
            saver.save(trained.snapshot(number))
            for _ in range(4):
                trained.step()
            saver.wait()
    assert told == [2]
    del expected[2]
    other = Trained(placement="device")
    for number, clone in expected.items():
        found = find(folder, None, saver.group)
        path = folder / f"step-{number:08d}"
        assert found is not None
        assert found.path.name == "step-00000005"
        load_parts(path, other.parts(), saver.group)
        read = other.clone()
        assert read.keys() == clone.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in clone.items())
        assert not torch.equal(clone["dense: rows"], trained.clone()["dense: rows"])


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """The last rank's disk takes nothing."""
    real = os.write

    def write(descriptor: int, part: memoryview) -> int:
        if dist.get_rank() == dist.get_world_size() - 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, part)

    os.write = write  # type: ignore[assignment]
    try:
        yield
    finally:
        os.write = real


def judged_as_it_was(folder: Path) -> None:
    """A row that is infinite by the time that it is written, but was not, is no fault; and one that
    was is, whatever it has become."""
    copy_on_write.BLOCK_ROWS = 8
    trained = Trained(placement="device")
    saver = Checkpointer(folder, Checkpoint())
    head = trained.heads["dense"]
    row = head.sub_centers[0]
    before = row.rows_CD[5].clone()
    saver.save(trained.snapshot(1))
    row.tell_change(slice(5, 6))
    row.rows_CD[5] = torch.inf
    saver.wait()
    saver.save(trained.snapshot(2))
    row.tell_change(slice(5, 6))
    row.rows_CD[5] = before
    with pytest.raises(UserError, match=r"step 2: .*dense: rows is not finite"):
        saver.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001"]


def both(folder: Path) -> None:
    save_while_training(folder / "trained")
    judged_as_it_was(folder / "judged")


def test_what_is_written_is_the_state_of_its_step(tmp_path: Path) -> None:
    run_ranks(2, both, tmp_path)
