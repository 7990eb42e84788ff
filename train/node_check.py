"""What every node of a cluster has to be able to do before a run is started there: read the
dataset, and write where the run is kept, at a place that all of them see."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load_stored
from manyfaces.configs.schema import Config, Data
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.manifest import MANIFEST, parse_manifest
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.remote import Remote
from manyfaces.train.folder import RunFolder, run_url

PATIENCE_S = 8.0
"""How long a check waits for a store; the run itself waits longer."""
SEEN_WITHIN_S = 5.0
"""How long a shared folder may take to show on one node what another has written."""


def begin(config: str, mark: str) -> list[str]:
    """Leave a file named `mark` where the run is going to be; returns what is wrong, a line each.
    For the node of the driver."""
    tree = _load(config)
    key, folder = _place(tree)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).write_text(socket.gethostname())
    except OSError as error:
        return [f"{key} {folder}: it cannot be written ({error.strerror})"]
    return []


def check(config: str, mark: str) -> list[str]:
    """What is wrong with this node, a line each."""
    tree = _load(config)
    return [*_store_faults(tree), *_folder_faults(tree, mark), *_data_faults(tree.data)]


def end(config: str, mark: str) -> list[str]:
    """Remove what `begin` has left."""
    (_place(_load(config))[1] / mark).unlink(missing_ok=True)
    return []


def _load(config: str) -> Config:
    return load_stored(yaml.safe_load(config), "the job's configuration")


def _place(config: Config) -> tuple[str, Path]:
    """The key of the folder that all nodes have to see, and the folder."""
    key = "run.dir" if run_url(config) is None else "run.work_dir"
    return key, RunFolder.of(config).path.parent


def _folder_faults(config: Config, mark: str) -> Iterator[str]:
    key, folder = _place(config)
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not (folder / mark).exists():
        if time.monotonic() > deadline:
            yield (
                f"{key} {folder}: what the driver's node writes there is not seen here; give a "
                "folder on storage that every node has"
            )
            return
        time.sleep(0.2)
    own = folder / f"{mark}-{socket.gethostname()}-{os.getpid()}"
    try:
        own.write_text("")
        own.unlink()
    except OSError as error:
        yield f"{key} {folder}: it cannot be written ({error.strerror})"


def _store_faults(config: Config) -> Iterator[str]:
    if (url := run_url(config)) is None:
        return
    # Torch comes with it, which takes seconds to import.
    from manyfaces.train.checkpoint.store import RunStore

    try:
        RunStore(url, min(config.checkpoint.store_patience_s, PATIENCE_S)).check()
    except UserError as error:
        yield str(error)


def _data_faults(config: Data) -> Iterator[str]:
    quick = config.model_copy(update={"store_patience_s": min(config.store_patience_s, PATIENCE_S)})
    for path in config.paths:
        try:
            _read(path, quick)
        except UserError as error:
            yield str(error)
        except OSError as error:
            yield f"dataset {error.filename or path}: it cannot be read ({error.strerror})"


def _read(path: str, config: Data) -> None:
    """Read a sample of the first and of the last shard. At a URL the manifest is read and these
    shards are asked for: the index of a large one takes longer than a check may."""
    if (url := url_of(path)) is not None:
        remote = Remote(url, config.store_patience_s)
        manifest = parse_manifest(remote.read(MANIFEST), url)
        _refuse_missing(remote, [shard.name for shard in manifest.shards])
        return
    part = open_part(path, config)
    if part.remote is not None:
        remote = Remote(part.remote.url, config.store_patience_s)
        _refuse_missing(remote, [shard.name for shard in part.manifest.shards])
        return
    for row in (0, len(part.shard_N) - 1):
        _read_sample(part, row)


def _refuse_missing(remote: Remote, names: list[str]) -> None:
    ends = {names[0], names[-1]}
    for name in sorted(ends - remote.sizes(sorted(ends)).keys()):
        raise UserError(f"dataset {remote.url}: {name} is missing; restore the shard")


def _read_sample(part: Part, row: int) -> None:
    path, size = part.shard_path(int(part.shard_N[row])), int(part.size_N[row])
    with path.open("rb") as file:
        file.seek(int(part.offset_N[row]))
        if len(file.read(size)) != size:
            raise UserError(f"dataset {path}: it ends before sample {row}; restore the shard")
