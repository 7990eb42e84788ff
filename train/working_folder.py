"""The folder in which a run at a URL works: what the store has that is newer is fetched to it
before the run starts."""

import time

from rich.console import Console

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.commit import Condition, Fault, corrupt_file
from manyfaces.train.checkpoint.layout import candidates, folder_name, newest_step
from manyfaces.train.checkpoint.store import DamagedError, RunStore, Stored
from manyfaces.train.folder import RUN_FILE, RunFolder, run_url
from manyfaces.train.lease import take_launch


def run_store(config: Config) -> RunStore | None:
    """The store of a run at a URL; None for any other. Raises `UserError`."""
    url = run_url(config)
    return None if url is None else RunStore(url, config.checkpoint.store_patience_s)


def has_committed(store: RunStore) -> bool:
    """Whether the store has a checkpoint, damaged or not. Raises `UserError`."""
    return any(map(_is_there, store.checkpoints()))


def bring(store: RunStore, folder: RunFolder, console: Console, *, takeover: bool) -> None:
    """Have in the folder the record and the newest intact checkpoint of the store, where that is
    newer than the folder's own, whose bytes are compared. This process has the lease of the run in
    the store, so nothing is added there meanwhile. Raises `UserError`."""
    folder.path.mkdir(parents=True, exist_ok=True)
    lease = take_launch(folder.path, takeover=takeover)
    try:
        there = [each for each in store.checkpoints() if _is_there(each)]
        step = _newest_intact(folder, console) if there else newest_step(folder.checkpoints)
        newer = [each for each in there if step is None or each.step > step]
        if newer:
            _bring_record(store, folder, folder.record)
        elif not folder.identity.exists():
            # Without a checkpoint the run begins anew, with the name and the MLflow run it has.
            _bring_record(store, folder, [folder.identity.name, RUN_FILE, folder.left_out.name])
        if newer:
            _bring_newest(store, folder, newer, console, has_own=step is not None)
    finally:
        lease.release()


def _newest_intact(folder: RunFolder, console: Console) -> int | None:
    """The step of the folder's newest checkpoint that is as it was committed, byte for byte; None
    where there is none."""
    for each in candidates(folder.checkpoints):
        if each.fault is None:
            if (fault := corrupt_file(each.path)) is None:
                return each.step
            console.print(f"{each.path}: {fault}; the store's are looked at")
    return None


def _is_there(stored: Stored) -> bool:
    """Whether it was committed, which an upload that was cut off is not."""
    fault = stored.commit
    return not isinstance(fault, Fault) or fault.condition is not Condition.UNCOMMITTED


def _bring_record(store: RunStore, folder: RunFolder, names: list[str]) -> None:
    for name, body in store.read_record(names).items():
        write_atomic(folder.path / name, body)


def _bring_newest(
    store: RunStore, folder: RunFolder, newer: list[Stored], console: Console, *, has_own: bool
) -> None:
    """Fetch the first of these checkpoints that is intact."""
    passed_over: list[str] = []
    for stored in newer:
        name, began = folder_name(stored.step), time.monotonic()
        console.print(f"{store.where}: fetching {name}, {stored.num_bytes / 1e6:,.1f} MB")
        try:
            store.fetch(stored, folder.checkpoints)
        except DamagedError as error:
            passed_over.append(f"{name} ({error})")
            continue
        others = f"; passed over {', '.join(passed_over)}" if passed_over else ""
        console.print(
            f"{store.where}: fetched {name} to {folder.path} in {time.monotonic() - began:,.1f} s, "
            f"every byte compared{others}"
        )
        return
    told = f"{store.where}: no newer checkpoint is intact: {', '.join(passed_over)}"
    if not has_own:
        raise UserError(f"{told}; restore one, or give another run.name to start afresh")
    console.print(f"{told}; the run goes on from what {folder.path} has")
