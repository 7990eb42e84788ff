"""Small checkpoints and datasets of names for tests of the head's identities; heads are read back
by torch's own reader."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.manifest import IDENTITIES, Manifest
from manyfaces.data.dataset.part import Part
from manyfaces.train.checkpoint.state import FORMAT


def named_dataset(path: Path, names: list[str] | int) -> Dataset:
    """A dataset without an image; a number stands for so many identities without a name."""
    path.mkdir(parents=True)
    if not isinstance(names, int):
        (path / IDENTITIES).write_text("".join(name + "\n" for name in names))
    count = names if isinstance(names, int) else len(names)
    manifest = Manifest(
        num_images=0, num_identities=count, image_px=None, index_sha256=str(path), shards=()
    )
    none = np.empty(0, np.uint32)
    return Dataset.of_part(Part(path, manifest, none, none.astype(np.uint64), none, none))


def made_head(count: int, seed: int, dim: int = 3) -> dict[str, Tensor]:
    """Tensors as optimisers of today and tomorrow may keep them."""
    random = torch.Generator().manual_seed(seed)
    return {
        "rows": torch.randn(count, dim, generator=random).half(),
        "rows.1": torch.randn(count, dim, generator=random).half(),
        "exp_avg": torch.randn(count, dim, generator=random),
        "lengths": torch.rand(count, generator=random),
        "inverse_norms": torch.rand(count, generator=random),
        "steps": torch.randint(1, 99, (count,), generator=random),
    }


def write_checkpoint(
    path: Path,
    names: list[str] | None,
    head: dict[str, Tensor],
    cut: int = 1,
    backbone: Path | None = None,
    **state: Any,
) -> Path:
    """A committed checkpoint whose head two ranks wrote, [0, cut) and the rest; `state` is added to
    its state.json."""
    count = len(head["rows"])
    (path / "head").mkdir(parents=True)
    for rank, (lo, hi) in enumerate(((0, cut), (cut, count))):
        places = {
            name: {"saved_offsets": [lo] + [0] * (tensor.dim() - 1)}
            for name, tensor in head.items()
        }
        part = {name: tensor[lo:hi].clone() for name, tensor in head.items()}
        save_file(
            part,
            path / "head" / f"shard-0000{rank + 1}-model-00001-of-00001.safetensors",
            {"DCP_SHARDING_INFO": json.dumps(places)},
        )
    for name in ("backbone", "optimizer"):
        save_file({"w": torch.arange(4.0) + len(name)}, path / f"{name}.safetensors")
    if backbone is not None:
        shutil.copyfile(backbone, path / "backbone.safetensors")
    if names is not None:
        (path / IDENTITIES).write_text("".join(name + "\n" for name in names))
    whole = {
        "format": FORMAT,
        "step": 7,
        "position": 70,
        "dataset": "fingerprint",
        "seed": 3,
        "num_classes": count,
        "numbers": {"head": {"mean": 0.5}},
        "config": {"model": {"kind": "mobilefacenet"}},
        **state,
    }
    (path / "state.json").write_text(json.dumps(whole))
    return write_commit(path)


def write_commit(path: Path) -> Path:
    """Commit the folder with all the files that are in it."""
    (path / "COMMIT.json").unlink(missing_ok=True)
    files = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    facts = {
        name: {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        for name, body in files.items()
    }
    (path / "COMMIT.json").write_text(
        json.dumps({"format": 1, "step": 7, "world_size": 2, "files": facts})
    )
    return path


def read_head(path: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """By torch.distributed.checkpoint, into tensors of the number of classes that state.json
    tells."""
    count = json.loads((path / "state.json").read_text())["num_classes"]
    head = {
        name: torch.zeros(count, *tensor.shape[1:], dtype=tensor.dtype)
        for name, tensor in like.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP's own
        dcp.load(head, storage_reader=HuggingFaceStorageReader(str(path / "head")), no_dist=True)
    return head
