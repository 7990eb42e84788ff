"""What writes a run's checkpoints, and what the workers of one at a URL do about its store."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.commit import COMMIT, Fault, read_commit
from manyfaces.train.checkpoint.finder import Found
from manyfaces.train.checkpoint.store import RunStore
from manyfaces.train.checkpoint.uploads import UploadHooks, Uploads
from manyfaces.train.checkpoint.writer import Checkpointer, Hooks
from manyfaces.train.folder import RunFolder, run_url
from manyfaces.train.lease import Launch, Lease
from manyfaces.train.record import Record
from manyfaces.train.store_lease import refuse_lost_in_store
from manyfaces.train.watchdog import Watchdog


def refuse_unseen(config: Config, folder: RunFolder, launch: Launch) -> None:
    """Raise `UserError` where this node does not see the folder in which a run at a URL works."""
    if run_url(config) is not None and launch.lost():
        raise UserError(
            f"{folder.path}: a node does not see the folder in which the run works; with workers "
            "on several nodes give a run.work_dir that every node sees"
        )


def open_checkpointer(
    config: Config,
    folder: RunFolder,
    record: Record,
    watchdog: Watchdog,
    writer: Lease | None,
    store_lease: int | None,
) -> Checkpointer:
    """Writes the run's checkpoints for as long as rank 0 has the lease, records them, and
    sends them to the store of a run at a URL. Collective."""
    hooks = Hooks(
        committed=lambda step, path: record.event(
            "checkpoint", f"checkpoint {path}", step=step, **_facts(path)
        ),
        failed=lambda step, message: record.event("checkpoint_failed", message, step=step),
        retained=lambda step, message: record.event("retention", message, step=step),
        beat=watchdog.beat,
        moment=watchdog.entered,
    )
    may_write = (lambda: None) if writer is None else writer.check
    uploads = _open_uploads(config, folder, record, watchdog.beat, may_write, store_lease)
    return Checkpointer(folder.checkpoints, config.checkpoint, hooks, may_write, uploads)


def _facts(checkpoint: Path) -> dict[str, Any]:
    """What tells a checkpoint from others, without reading it: where it is, its size, and the
    SHA-256 of the list of its files, which has that of each."""
    commit = read_commit(checkpoint)
    if isinstance(commit, Fault):  # another process has removed it meanwhile
        return {"path": str(checkpoint)}
    sizes = [file.bytes for file in commit.files.values()]
    return {
        "path": str(checkpoint),
        "bytes": sum(sizes),
        "files": len(sizes),
        "commit_sha256": file_sha256(checkpoint / COMMIT),
    }


def _open_uploads(
    config: Config,
    folder: RunFolder,
    record: Record,
    beat: Callable[[], None],
    may_write: Callable[[], None],
    store_lease: int | None,
) -> Uploads | None:
    """What sends the run's checkpoints to the store at `run.dir`, and records it; None where that
    is no URL. Nothing is sent once another launch than `store_lease` has the run. Collective."""
    url = run_url(config)
    if url is None:
        return None
    patience_s = config.checkpoint.store_patience_s
    store = on_all_ranks(
        lambda: RunStore(url, patience_s, lambda line: Record(folder.path).event("store", line))
    )
    hooks = UploadHooks(
        sent=lambda step, message: record.event("uploaded", message, step=step),
        failed=lambda step, message: record.event("upload_failed", message, step=step),
        beat=beat,
    )

    def may_send() -> None:
        may_write()
        if store_lease is not None:
            refuse_lost_in_store(store.remote, store_lease)

    return Uploads(store, config.checkpoint, hooks, lambda: folder.kept, may_send)


def begin_sending(checkpointer: Checkpointer, found: Found | None) -> None:
    """Send the checkpoint that the session resumes from, where the store lacks it. Collective."""
    if checkpointer.uploads is not None:
        is_own = found is not None and found.path.parent == checkpointer.folder
        checkpointer.uploads.begin(found.path if found is not None and is_own else None)


@contextlib.contextmanager
def sending(checkpointer: Checkpointer, record: Record, watchdog: Watchdog) -> Iterator[None]:
    """Where the training in the block ends by an error that all ranks meet alike, have the last
    checkpoint in the store before it is raised. Collective then."""
    try:
        yield
    except UserError:
        if checkpointer.uploads is not None:
            watchdog.phase("upload")
            try:
                checkpointer.uploads.finish()
            except UserError as error:
                # A run that was taken over is another's to record; a full disk takes no line.
                with contextlib.suppress(UserError, OSError):
                    checkpointer.may_write()
                    record.event("upload_failed", str(error))
        raise
