"""A head that many ranks wrote is edited in one process, and any number of ranks goes on from
it."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from launcher import run_ranks

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.schema import Config
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.data.dataset.names import Names
from manyfaces.train.checkpoint.finder import find, load_parts
from manyfaces.train.checkpoint.snapshot import Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer
from manyfaces.train.curation.head_edit import merge, remove
from manyfaces.train.objectives.objective import ShardedRows

DIM = 4


def tensors(classes: int) -> dict[str, torch.Tensor]:
    rows_CD = torch.arange(classes * DIM, dtype=torch.float32).reshape(classes, DIM)
    return {"rows": rows_CD.half(), "momentum": -rows_CD, "steps": rows_CD[:, 0].long()}


def mine(head: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rank, world = dist.get_rank(), dist.get_world_size()
    part = -(-len(head["rows"]) // world)
    return {name: tensor[rank * part : (rank + 1) * part].clone() for name, tensor in head.items()}


def save(folder: Path) -> None:
    """Of eleven classes, and of two on three ranks."""
    for prefix, classes in (("a", 11), ("b", 2)):
        names = folder / f"{prefix}.txt"
        names.write_text("".join(f"{prefix}{n}\n" for n in range(classes)))
        whole = {"w": torch.ones(3)} if dist.get_rank() == 0 else {}
        config = Config(model=MobileFaceNet())
        state = RunState(config, prefix, classes, seed=0, step=5, position=50)
        saver = Checkpointer(folder / prefix / "checkpoints", Checkpoint())
        parts = {"head": ShardedRows(mine(tensors(classes)), classes)}
        identities = names if dist.get_rank() == 0 else None
        saver.save(Snapshot(state, whole, whole, parts, identities))
        saver.wait()


def load(folder: Path, expected: dict[str, np.ndarray]) -> None:
    loader = Checkpointer(folder / "new run", Checkpoint())
    found = find(loader.folder, str(folder / "merged"), loader.group)
    assert found is not None
    wanted = mine({name: torch.from_numpy(array) for name, array in expected.items()})
    head = {name: torch.full_like(tensor, -99) for name, tensor in wanted.items()}
    parts = {"head": ShardedRows(head, found.state.num_classes)}
    load_parts(found.path, parts, loader.group)
    assert all(torch.equal(head[name], tensor) for name, tensor in wanted.items())


def test_three_ranks_write_and_two_go_on_from_the_edit(tmp_path: Path) -> None:
    run_ranks(3, save, tmp_path)
    assert (
        tmp_path / "a" / "checkpoints" / "step-00000005" / "identities.txt"
    ).read_text().split() == [f"a{n}" for n in range(11)]
    remove(tmp_path / "a", tmp_path / "fewer", Names.parse(b"a3\na10"))
    merge(tmp_path / "fewer", tmp_path / "b", tmp_path / "merged")
    kept = [0, 1, 2, 4, 5, 6, 7, 8, 9]
    expected = {
        name: np.concatenate([tensor.numpy()[kept], tensors(2)[name].numpy()])
        for name, tensor in tensors(11).items()
    }
    run_ranks(2, load, tmp_path, expected)
