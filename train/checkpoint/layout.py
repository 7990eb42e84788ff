"""What a checkpoint looks like on disk, and when one exists.

    RUN/checkpoints/step-00001000/
        backbone.safetensors   weights and buffers of the backbone, float32
        network.safetensors    those of what an objective trains beside it, where it does
        optimizer.safetensors  moments of both by parameter name: independent of world size and ZeRO
                               stage
        head/                  class rows and their state, sharded by rank through
                               torch.distributed.checkpoint; any world size reads them
        NAME/, NAME.safetensors   what other objectives keep: sharded by rows, or held by rank 0
        identities.txt         line = name of the class id, where the dataset has names
        state.json             position, seed, configuration, dataset fingerprint, MLflow run
        COMMIT.json            sizes and SHA-256 of all of the above, written last

A folder without a valid COMMIT.json does not exist; but for the names, nothing but safetensors and
JSON is ever read.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256, write_atomic

COMMIT_FORMAT = 1
COMMIT, STATE, BACKBONE, BESIDE_BACKBONE, OPTIMIZER, HEAD = (
    "COMMIT.json",
    "state.json",
    "backbone.safetensors",
    "network.safetensors",
    "optimizer.safetensors",
    "head",
)
UNCOMMITTED, OTHER_FORMAT = "not committed", "format"
FREE_SPACE_FACTOR = 1.05
"""Space that has to be free for each byte of a checkpoint."""


def candidates(folder: Path) -> list[tuple[Path, int, str]]:
    """(path, step, what is wrong with it) of every checkpoint folder, newest step first."""
    found = []
    for path in folder.glob("step-*"):
        digits = path.name.removeprefix("step-")[:8]
        if path.is_dir() and digits.isdigit() and ".bad-" not in path.name:
            fault = UNCOMMITTED if ".tmp-" in path.name else check_commit(path)
            found.append((path, int(digits), fault))
    return sorted(found, key=lambda item: item[1], reverse=True)


def check_commit(path: Path) -> str:
    """What is wrong with a checkpoint, as far as COMMIT.json and file sizes tell; "" if nothing
    is."""
    try:
        told = json.loads((path / COMMIT).read_text())
        if told["format"] != COMMIT_FORMAT:
            return f"{OTHER_FORMAT} {told['format']}, this version reads {COMMIT_FORMAT}"
        for name, facts in told["files"].items():
            size = (path / name).stat().st_size if (path / name).is_file() else -1
            if size != facts["bytes"]:
                has = "missing" if size < 0 else f"{size} bytes"
                return f"{name}: {has}, expected {facts['bytes']}"
    except FileNotFoundError:
        return "no COMMIT.json" if path.is_dir() else "no such folder"
    except (ValueError, KeyError, TypeError):
        return "COMMIT.json is torn"
    return ""


def corrupt_file(path: Path, part: int = 0, parts: int = 1) -> str:
    """The first of this part of a committed checkpoint's files whose bytes are others than were
    committed; "" if none is."""
    files = json.loads((path / COMMIT).read_text())["files"]
    for name in sorted(files)[part::parts]:
        if file_sha256(path / name) != files[name]["sha256"]:
            return f"{name}: digest differs"
    return ""


def digest(folder: Path, names: list[Path]) -> dict[str, dict[str, Any]]:
    """Flush these files to disk; their facts for COMMIT.json."""
    for name in names:
        _fsync(folder / name)
    return {
        str(name): {
            "bytes": (folder / name).stat().st_size,
            "sha256": file_sha256(folder / name),
        }
        for name in names
    }


def commit(temporary: Path, final: Path, step: int, world_size: int, files: dict[str, Any]) -> None:
    """Write COMMIT.json and give the folder its name, on disk when this returns."""
    facts = {"format": COMMIT_FORMAT, "step": step, "world_size": world_size, "files": files}
    write_atomic(temporary / COMMIT, json.dumps(facts, indent=1))
    temporary.rename(final)
    _fsync(final.parent)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is committed and of the right sizes, if there is one."""
    return next((path for path, _, fault in candidates(folder) if not fault), None)


def chosen(run: Path) -> Path:
    """The checkpoint folder that is given, or the newest one of the run that is. Raises
    `UserError`."""
    if run.parent.name == "checkpoints":
        if fault := check_commit(run):
            raise UserError(f"{run}: {fault}")
        return run
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(
            f"{run}: no run there; expected a folder RUN with RUN/checkpoints in it, or one of its "
            "checkpoints"
        )
    path = newest(folder)
    if path is None:
        raise UserError(f"{folder}: no committed checkpoint in it")
    return path


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Weights and buffers of the backbone, float32, on the CPU."""
    return dict(load_file(path / BACKBONE))


def read_beside_backbone(path: Path) -> dict[str, Tensor]:
    """Weights and buffers of the rest of the network, float32, on the CPU."""
    file = path / BESIDE_BACKBONE
    return dict(load_file(file)) if file.is_file() else {}


def read_optimizer(path: Path) -> dict[str, Tensor]:
    """The optimiser's moments by `KIND.PARAMETER`, and its `step`."""
    return dict(load_file(path / OPTIMIZER))


def retain(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest good checkpoints and what is torn, but nothing of another
    format. A failed removal stops nothing."""
    found = candidates(folder)
    good = [path for path, _, fault in found if not fault]
    torn = [path for path, _, fault in found if fault and not fault.startswith(OTHER_FORMAT)]
    for path in good[keep:] + torn + list(folder.glob("step-*.bad-*")):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
