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
from manyfaces.configs.schema import Config
from manyfaces.train import probes
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
    return [*_folder_faults(tree, mark), *_probed(tree)]


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


def _probed(config: Config) -> Iterator[str]:
    """What is wrong with the dataset and with the store of a run at a URL."""
    quick = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"store_patience_s": min(config.data.store_patience_s, PATIENCE_S)}
            ),
            "checkpoint": config.checkpoint.model_copy(
                update={"store_patience_s": min(config.checkpoint.store_patience_s, PATIENCE_S)}
            ),
        }
    )
    payload = {"config": quick.model_dump(mode="json")}
    wanted = {"dataset": probes.dataset}
    if run_url(config) is not None:
        wanted["store"] = probes.store
    for name, probe in wanted.items():
        try:
            probe(payload)
        except UserError as error:
            yield str(error)
        except OSError as error:
            yield f"{name} {error.filename or ''}: it cannot be read ({error.strerror})"
