"""Checkpoints that exist whole or not at all: written in the background to a temporary folder,
committed by one rename.

    RUN/checkpoints/step-00001000/
        backbone.safetensors   weights and buffers, float32
        optimizer.safetensors  its moments by parameter name: independent of world size and ZeRO
        stage
        head/                  class rows and their state, sharded by rank through
        torch.distributed.checkpoint, any world size reads them
        identities.txt         line = name of the class id, where the dataset has names
        state.json             position, seed, configuration, dataset fingerprint, MLflow run,
        versions
        COMMIT.json            sizes and SHA-256 of all of the above, written last

A folder without a valid COMMIT.json does not exist; but for the names, nothing but safetensors and
JSON is ever read.
"""

import contextlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from manyfaces.cluster.world import agree
from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import file_sha256, write_atomic
from manyfaces.data.dataset.write import IDENTITIES

FORMAT = 1
COMMIT, STATE, BACKBONE, OPTIMIZER, HEAD = (
    "COMMIT.json",
    "state.json",
    "backbone.safetensors",
    "optimizer.safetensors",
    "head",
)
UNCOMMITTED, OTHER_FORMAT = "not committed", "format"
FREE_SPACE_FACTOR = 1.05


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, already copied. `backbone` and `optimizer` on rank 0 only;
    `head` is each rank's shard."""

    step: int
    backbone: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    head: dict[str, Tensor]
    num_classes: int
    state: dict[str, Any]
    identities: Path | None = None
    """The file of the classes' names, copied as it is."""


@dataclass(frozen=True)
class Found:
    path: Path
    step: int
    state: dict[str, Any]
    why: str
    """What was found, what was chosen and why, for the person."""


class Checkpointer:
    """Writes one checkpoint at a time in a background thread of every rank; its collectives use a
    gloo group of their own.

    All methods are collective. `save` and `wait` raise `UserError`, on every rank alike, if the
    write before failed.
    """

    def __init__(self, folder: Path, keep: int, on_commit: Callable[[int, Path], None]) -> None:
        self.folder, self.keep, self.on_commit = folder, keep, on_commit
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo")
        attempt = [os.urandom(4).hex()]
        dist.broadcast_object_list(attempt, 0, group=self.group)
        self.attempt = attempt[0]
        self._thread: threading.Thread | None = None
        self._error: str | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Start writing. Waits for the write before."""
        self.wait()
        local = sum(
            t.nbytes
            for part in (snapshot.backbone, snapshot.optimizer, snapshot.head)
            for t in part.values()
        )
        needed = torch.tensor([local])
        dist.all_reduce(needed, group=self.group)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = torch.tensor([shutil.disk_usage(self.folder).free])
        dist.all_reduce(free, dist.ReduceOp.MIN, group=self.group)
        if free.item() < needed.item() * FREE_SPACE_FACTOR:
            raise UserError(
                f"{self.folder}: a checkpoint needs {needed.item() / 1e6:,.1f} MB, "
                f"{free.item() / 1e6:,.1f} MB free; {self._last_good()}"
            )
        self._thread = threading.Thread(
            target=self._write, args=(snapshot,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise UserError(f"{self.folder}: {self._error}; {self._last_good()}")

    def _last_good(self) -> str:
        good = next((path.name for path, _, fault in candidates(self.folder) if not fault), None)
        return (
            f"the last good checkpoint is {good or 'none'}; free some space and run the same "
            "command to resume"
        )

    def _write(self, snapshot: Snapshot) -> None:
        final = self.folder / f"step-{snapshot.step:08d}"
        temporary = self.folder / f"{final.name}.tmp-{self.attempt}"
        try:
            agree(lambda: self._write_local(temporary, snapshot), self.group)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # DCP's own
                dcp.save(
                    self._sharded(snapshot.head, snapshot.num_classes),
                    storage_writer=HuggingFaceStorageWriter(
                        str(temporary / HEAD), save_distributed=True
                    ),
                    process_group=self.group,
                )
            # Rank 0 lists for all: on a network file system another node may not see every file
            # yet.
            names: list[Any] = [
                sorted(p.relative_to(temporary) for p in temporary.rglob("*") if p.is_file())
                if self.rank == 0
                else None
            ]
            dist.broadcast_object_list(names, 0, group=self.group)
            digests: list[Any] = [None] * self.world_size
            dist.all_gather_object(
                digests,
                agree(lambda: self._digest(temporary, names[0]), self.group),
                group=self.group,
            )
            files = {name: facts for part in digests for name, facts in part.items()}
            agree(lambda: self._commit(temporary, final, snapshot.step, files), self.group)
            if self.rank == 0:
                self.on_commit(snapshot.step, final)
                retain(self.folder, self.keep)
        except Exception as error:
            self._error = f"checkpoint of step {snapshot.step} could not be written: {error}"

    def _commit(self, temporary: Path, final: Path, step: int, files: dict[str, Any]) -> None:
        if self.rank != 0:
            return
        # A name is never reused: a folder of this step that stands here is not committed, or was
        # found rotten.
        if final.exists():
            final.rename(self.folder / f"{final.name}.bad-{self.attempt}")
        commit(temporary, final, step, self.world_size, files)

    def _write_local(self, folder: Path, snapshot: Snapshot) -> None:
        (folder / HEAD).mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            save_file(snapshot.backbone, folder / BACKBONE)
            save_file(snapshot.optimizer, folder / OPTIMIZER)
            write_atomic(folder / STATE, json.dumps(snapshot.state, indent=1))
            if snapshot.identities is not None:
                shutil.copyfile(snapshot.identities, folder / IDENTITIES)

    def _digest(self, folder: Path, names: list[Path]) -> dict[str, dict[str, Any]]:
        return digest(folder, names[self.rank :: self.world_size])

    def _sharded(self, head: dict[str, Tensor], num_classes: int) -> dict[str, DTensor]:
        mesh = DeviceMesh.from_group(self.group, "cpu")
        sharded = {}
        for name, tensor in head.items():
            whole = torch.empty(num_classes, *tensor.shape[1:], device="meta")
            sharded[name] = DTensor.from_local(
                tensor, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
            )
        return sharded

    def find(self, resume_from: str | None = None) -> Found | None:
        """The newest committed checkpoint whose bytes are all as committed, the same on every rank.
        Order of precedence:

        1. the newest step of this run's own folder that is committed and intact;
        2. else `resume_from`, which must be;
        3. else none: a fresh start.
        """
        passed_over: list[str] = []
        listing: list[Any] = [candidates(self.folder) if self.rank == 0 else None]
        dist.broadcast_object_list(listing, 0, group=self.group)
        for path, step, fault in listing[0]:
            fault = fault or self._verify(path)
            others = f"; passed over {', '.join(passed_over)}" if passed_over else ""
            if not fault:
                return Found(
                    path, step, read_state(path), f"newest committed checkpoint of this run{others}"
                )
            passed_over.append(f"{path.name} ({fault})")
        if damaged := [name for name in passed_over if UNCOMMITTED not in name]:
            raise UserError(
                f"{self.folder}: no checkpoint is intact: {', '.join(damaged)}; restore one, or "
                "move them away to start afresh"
            )
        if resume_from is not None:
            path = Path(resume_from)
            fault = agree(lambda: check_commit(path), self.group) or self._verify(path)
            if fault:
                raise UserError(
                    f"run.resume_from {path}: {fault}; give a folder RUN/checkpoints/step-..."
                )
            state = read_state(path)
            return Found(
                path, state["step"], state, "run.resume_from, as this run has none of its own"
            )
        return None

    def _verify(self, path: Path) -> str:
        """What is wrong with a committed checkpoint's bytes, if anything; every rank reads its
        part, all get one verdict."""

        fault = agree(lambda: rot(path, self.rank, self.world_size), self.group)
        faults: list[Any] = [""] * self.world_size
        dist.all_gather_object(faults, fault, group=self.group)
        return next((f for f in faults if f), "")

    def load_head(self, path: Path, head: dict[str, Tensor], num_classes: int) -> None:
        """Fill this rank's shard in place from a checkpoint of any world size."""
        local = {name: t.cpu() for name, t in head.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP's own
            dcp.load(
                self._sharded(local, num_classes),
                storage_reader=HuggingFaceStorageReader(str(path / HEAD)),
                process_group=self.group,
            )
        for name, tensor in head.items():
            tensor.copy_(local[name])


def candidates(folder: Path) -> list[tuple[Path, int, str]]:
    """(path, step, what is wrong with it) of every checkpoint folder, newest step first."""
    found = []
    for path in folder.glob("step-*"):
        digits = path.name.removeprefix("step-")[:8]
        if path.is_dir() and digits.isdigit() and ".bad-" not in path.name:
            found.append(
                (path, int(digits), UNCOMMITTED if ".tmp-" in path.name else check_commit(path))
            )
    return sorted(found, key=lambda item: item[1], reverse=True)


def check_commit(path: Path) -> str:
    """What is wrong with a checkpoint, as far as COMMIT.json and file sizes tell; "" if nothing
    is."""
    try:
        commit = json.loads((path / COMMIT).read_text())
        if commit["format"] != FORMAT:
            return f"{OTHER_FORMAT} {commit['format']}, this version reads {FORMAT}"
        for name, facts in commit["files"].items():
            size = (path / name).stat().st_size if (path / name).is_file() else -1
            if size != facts["bytes"]:
                return (
                    f"{name}: {'missing' if size < 0 else f'{size} bytes'}, expected "
                    f"{facts['bytes']}"
                )
    except FileNotFoundError:
        return "no COMMIT.json" if path.is_dir() else "no such folder"
    except (ValueError, KeyError, TypeError):
        return "COMMIT.json is torn"
    return ""


def rot(path: Path, part: int = 0, parts: int = 1) -> str:
    """The first of this part of a committed checkpoint's files whose bytes are others than were
    committed; "" if none."""
    files = json.loads((path / COMMIT).read_text())["files"]
    return next(
        (
            f"{name}: digest differs"
            for name in sorted(files)[part::parts]
            if file_sha256(path / name) != files[name]["sha256"]
        ),
        "",
    )


def digest(folder: Path, names: list[Path]) -> dict[str, dict[str, Any]]:
    """Flush these files to disk; their facts for COMMIT.json."""
    for name in names:
        _fsync(folder / name)
    return {
        str(n): {"bytes": (folder / n).stat().st_size, "sha256": file_sha256(folder / n)}
        for n in names
    }


def commit(temporary: Path, final: Path, step: int, world_size: int, files: dict[str, Any]) -> None:
    """Write COMMIT.json and give the folder its name, on disk when this returns."""
    facts = {"format": FORMAT, "step": step, "world_size": world_size, "files": files}
    write_atomic(temporary / COMMIT, json.dumps(facts, indent=1))
    temporary.rename(final)
    _fsync(final.parent)


def newest(folder: Path) -> Path:
    """The newest checkpoint that is committed and of the right sizes. Raises `UserError` where
    there is none."""
    for path, _, fault in candidates(folder):
        if not fault:
            return path
    raise UserError(f"{folder}: no committed checkpoint in it")


def chosen(run: Path) -> Path:
    """The checkpoint folder that is given, or the newest one of the run that is. Raises
    `UserError`."""
    if run.parent.name == "checkpoints":
        if fault := check_commit(run):
            raise UserError(f"{run}: {fault}")
        return run
    if not (run / "checkpoints").is_dir():
        raise UserError(
            f"{run}: no run there; expected a folder RUN with RUN/checkpoints in it, or one of its "
            "checkpoints"
        )
    return newest(run / "checkpoints")


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE).read_text())  # type: ignore[no-any-return]


def read_backbone(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path / BACKBONE))


def read_optimizer(path: Path) -> dict[str, Tensor]:
    return dict(load_file(path / OPTIMIZER))


def retain(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest good checkpoints and what is torn, but nothing of another
    format. A failed removal stops nothing."""
    found = candidates(folder)
    good = [path for path, _, fault in found if not fault]
    torn = [
        path for path, _, fault in found if fault and not fault.startswith(OTHER_FORMAT)
    ] + list(folder.glob("step-*.bad-*"))
    for path in good[keep:] + torn:
        with contextlib.suppress(OSError):
            shutil.rmtree(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
