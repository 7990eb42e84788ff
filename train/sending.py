"""What the workers of a run at an URL do about its store."""

import contextlib
from collections.abc import Callable

from manyfaces.cluster.world import on_all_ranks
from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.finder import Found
from manyfaces.train.checkpoint.store import RunStore
from manyfaces.train.checkpoint.uploads import UploadHooks, Uploads
from manyfaces.train.checkpoint.writer import Checkpointer
from manyfaces.train.folder import RunFolder, run_url
from manyfaces.train.lease import Launch
from manyfaces.train.record import Record
from manyfaces.train.store_lease import refuse_lost_in_store


def refuse_unseen(config: Config, folder: RunFolder, launch: Launch) -> None:
    """Raise `UserError` where this node does not see the folder in which a run at an URL works."""
    if run_url(config) is not None and launch.lost():
        raise UserError(
            f"{folder.path}: a node does not see the folder in which the run works; with workers "
            "on several nodes give a run.work_dir that every node sees"
        )


def open_uploads(
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


def send_what_stands(checkpointer: Checkpointer, record: Record) -> None:
    """Have the last checkpoint in the store before the run ends with another word. Collective."""
    if checkpointer.uploads is None:
        return
    try:
        checkpointer.uploads.finish()
    except UserError as error:
        # A run that was taken over is another one's to record, and a full disk takes no line.
        with contextlib.suppress(UserError, OSError):
            checkpointer.may_write()
            record.event("upload_failed", str(error))
