"""Checkpoints at a URL, for whatever reads one from a folder."""

import fcntl
import re
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.configs.sections.run import Run
from manyfaces.configs.urls import url_of
from manyfaces.train.checkpoint.choice import BEST
from manyfaces.train.checkpoint.commit import COMMIT, Commit, check_commit, read_commit
from manyfaces.train.checkpoint.layout import folder_name, sweep
from manyfaces.train.checkpoint.store import DamagedError, RunStore, Stored
from manyfaces.train.folder import CHECKPOINTS, work_folder

PATIENCE_S = Checkpoint().store_patience_s
WORK_DIR = Run().work_dir
_CHECKPOINT = re.compile(rf"(.+)/{CHECKPOINTS}/step-(\d{{8,}})")


def fetched(where: str | Path, work_dir: str = WORK_DIR) -> Path:
    """A path as it is; for the URL of a run, or of one of its checkpoints, the folder on this
    machine to which the newest committed one, or that one, was fetched, once every byte was
    compared. What was fetched before is not fetched again. The folder is another than the one that
    the run works in, so that no run takes what is here for its own.

    Raises `UserError` where there is none, or where it is damaged: no other is taken for it.
    """
    if (url := url_of(where)) is None:
        return Path(where)
    store, found = stored_checkpoints(url)
    stored = next((each for each in found if isinstance(each.commit, Commit)), None)
    if stored is None:
        raise UserError(f"{store.where}: no committed checkpoint there: {found[0].commit}")
    folder = fetched_folder(store, work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes of a machine may want the same one; which waits finds it there.
    with (folder / ".fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(folder)
        path = folder / folder_name(stored.step)
        if read_commit(path) == stored.commit and check_commit(path) is None:
            return path
        try:
            return store.fetch(stored, folder)
        except DamagedError as error:
            raise UserError(
                f"{store.where}/{CHECKPOINTS}/{path.name}: {error}; give another of its checkpoints"
            ) from error


def fetched_folder(store: RunStore, work_dir: str = WORK_DIR) -> Path:
    """The folder on this machine for checkpoints that are fetched from the store, which need not be
    there."""
    return work_folder(store.remote.url, str(Path(work_dir) / "fetched")) / CHECKPOINTS


def stored_checkpoints(url: str) -> tuple[RunStore, list[Stored]]:
    """The store of the run at the URL and its checkpoints, newest first, or the one that the URL
    is of. Raises `UserError` where there is none."""
    if url.endswith(BEST):
        raise UserError(
            f"{url}: {BEST} is for runs in a folder; give the URL of the checkpoint, as "
            "`manyfaces checkpoint show URL` lists them"
        )
    run, step = _split(url)
    store = RunStore(run, PATIENCE_S)
    found = [each for each in store.checkpoints() if step in (None, each.step)]
    if not found:
        raise UserError(
            f"{store.where}: no checkpoint there; give the URL of a run, whose checkpoints are at "
            f"URL/{CHECKPOINTS}/step-.../{COMMIT}, or of one of these"
        )
    return store, found


def _split(url: str) -> tuple[str, int | None]:
    """The URL of the run, and the step of the checkpoint that is meant."""
    fits = _CHECKPOINT.fullmatch(url)
    return (url, None) if fits is None else (fits[1], int(fits[2]))
