"""Whether a run may have its folder: the same name means the same experiment."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manyfaces.configs import plan
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256, write_atomic
from manyfaces.configs.fit import GO_ON, shortage, without_gpus
from manyfaces.configs.identity import differences, tensors
from manyfaces.configs.launcher import under_torchrun
from manyfaces.configs.load import dump
from manyfaces.configs.plan_report import summary_lines
from manyfaces.configs.redact import redacted
from manyfaces.configs.schema import Config
from manyfaces.configs.worker_machine import machine
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.dataset.names import names_sha256, write_names
from manyfaces.train.checkpoint.commit import Condition
from manyfaces.train.checkpoint.layout import STATE, candidates
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.store import RunStore
from manyfaces.train.folder import RunFolder
from manyfaces.train.lease import Lease, take_launch
from manyfaces.train.record import EVENTS, last_event
from manyfaces.train.run_identity import (
    differing,
    identity_here,
    identity_in_store,
    stored_identity,
    write_identity,
)


def claim(config: Config, dataset: Dataset, folder: RunFolder, *, takeover: bool = False) -> Lease:
    """Make the run folder, or check that the one that stands is of the same experiment; gives the
    lease of the launch, which `takeover` takes from whoever has it. Raises `UserError` with the
    differing keys, and where another process writes the run."""
    refuse_other(config, dataset, folder)
    resume_from = config.run.resume_from
    if resume_from is not None and not candidates(folder.checkpoints):
        check_source(config, dataset, Path(resume_from))
    manifest = dataset.manifest
    planned = plan.plan(
        config, manifest.num_images, manifest.num_identities, plan.world_size(config)
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    lease = take_launch(folder.path, takeover=takeover)
    try:
        refuse_other(config, dataset, folder)  # another launch may have begun and ended just now
        for leftover in folder.path.glob(".ray-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        write_names(dataset, folder.path / IDENTITIES)  # each checkpoint holds a copy
        write_identity(folder, config, identity_here(config, dataset))
        write_atomic(folder.config, dump(redacted(config)))
        _write_plan(config, planned, folder)
    except BaseException:
        lease.release()
        raise
    return lease


def _write_plan(config: Config, planned: plan.Plan, folder: RunFolder) -> None:
    """Write what the run is going to cost, as text for people, and the memory of a worker for
    programs."""
    lines = summary_lines(config, planned, machine(config))
    write_atomic(folder.plan, "".join(f"{label}: {text}\n" for label, text in lines))
    figures = {
        "world_size": planned.world_size,
        "memory_bytes": planned.memory_bytes,
        "host_bytes": planned.host_bytes,
        "has_gpus": planned.has_gpus,
    }
    write_atomic(folder.plan_figures, json.dumps(figures, indent=1) + "\n")


def refuse_without_gpus(config: Config) -> None:
    """Raise `UserError` for a configuration for GPUs on a machine that has none."""
    if not under_torchrun() and (why := without_gpus(config)) is not None:
        raise UserError(why)


def refuse_too_large(config: Config, dataset: Dataset, tell: Callable[[str], None]) -> None:
    """Raise `UserError` where the workers' machines are known and the run surely does not fit them;
    what may not fit is only told, and so is the former with `cluster.check_memory=false`."""
    manifest = dataset.manifest
    planned = plan.plan(
        config, manifest.num_images, manifest.num_identities, plan.world_size(config)
    )
    own = machine(config)
    short = shortage(config, planned, own) if own.known else None
    if short is None:
        return
    if short.is_sure and config.cluster.check_memory:
        raise UserError(f"does not fit: {short.told}; {GO_ON}")
    tell(f"{short.label}: {short.told}")


def refuse_other(config: Config, dataset: Dataset, folder: RunFolder) -> None:
    """Raise `UserError` where the run that stands is of another experiment."""
    if folder.identity.exists():
        _refuse_differing(config, dataset, stored_identity(folder), str(folder.path))


def refuse_other_in_store(config: Config, dataset: Dataset, store: RunStore) -> None:
    """As `refuse_other`, for the run that the store has."""
    if (there := identity_in_store(store)) is not None:
        _refuse_differing(config, dataset, there, store.where)


def _refuse_differing(config: Config, dataset: Dataset, there: dict[str, Any], where: str) -> None:
    if told := differing(identity_here(config, dataset), there):
        raise UserError(
            f"{where}: the run exists with other settings: {told}; give another run.name "
            "(with run.resume_from to start from its checkpoint), or the old values"
        )


def refuse_lost(folder: RunFolder) -> None:
    """Raise `UserError` for a run whose record tells of checkpoints that are gone: it would begin
    again at step 0, and forget what was measured."""
    written = last_event(folder.path, "checkpoint")
    known = [each.fault for each in candidates(folder.checkpoints)]
    if written is None or any(
        fault is None or fault.condition is not Condition.UNCOMMITTED for fault in known
    ):
        return
    raise UserError(
        f"{folder.checkpoints}: no checkpoint is there, and {folder.path / EVENTS} says that one "
        f"of step {written.get('step', 0):,} was; restore it, or start afresh: move "
        f"{folder.path} away, or give another run.name"
    )


def check_source(config: Config, dataset: Dataset, source: Path) -> None:
    """Raise `UserError` for a checkpoint of another run that this one cannot go on from."""
    if not (source / STATE).is_file():
        raise UserError(
            f"run.resume_from {source}: no checkpoint there; give a folder RUN/checkpoints/step-..."
        )
    state = RunState.read(source)
    remedy = "`manyfaces head remap` makes a checkpoint for this dataset of it"
    if (has := state.num_classes) != (wanted := dataset.manifest.num_identities):
        raise UserError(
            f"run.resume_from {source}: its {has:,} identities cannot continue as {wanted:,}; "
            f"{remedy}"
        )
    names = source / IDENTITIES
    if names.is_file() and names_sha256(dataset) not in (None, file_sha256(names)):
        raise UserError(
            f"run.resume_from {source}: its classes are other people than {dataset.where} has, or "
            f"in another order; {remedy}"
        )
    here, there = tensors(config), tensors(state.config)
    if keys := differences(here, there):
        key = keys[0]
        raise UserError(
            f"run.resume_from {source}: its {key} {there.get(key)} cannot continue as "
            f"{here.get(key)}"
        )
