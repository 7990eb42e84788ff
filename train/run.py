"""A run in the process that a person started: check, claim the folder, launch, show, summarise."""

import contextlib
import os
import time
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from manyfaces.cluster import jobs, launch
from manyfaces.cluster.group import first_alone, first_tells, joined
from manyfaces.cluster.stop import StoppedError
from manyfaces.configs import paths, plan
from manyfaces.configs.errors import UserError
from manyfaces.configs.identity import flatten
from manyfaces.configs.launcher import under_torchrun
from manyfaces.configs.node import WEIGHTS
from manyfaces.configs.redact import redacted
from manyfaces.configs.schema import Config
from manyfaces.configs.secrets import refuse_shown_secrets
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.dataset import Dataset, open_data
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.dataset.verify import verify
from manyfaces.data.orders.build import check_sizes
from manyfaces.train.checkpoint.choice import chosen, names_checkpoint
from manyfaces.train.checkpoint.fetched import fetched
from manyfaces.train.checkpoint.layout import newest, newest_step
from manyfaces.train.claim import (
    claim,
    refuse_lost,
    refuse_other,
    refuse_other_in_store,
    refuse_too_large,
    refuse_without_gpus,
)
from manyfaces.train.evaluation.encoders import checked_file
from manyfaces.train.evaluation.result import QuantitiesByName, metric
from manyfaces.train.faults import VARIABLE, parse
from manyfaces.train.folder import RunFolder, run_url
from manyfaces.train.follow import Follower, summary_table
from manyfaces.train.initial_weights import check_initial
from manyfaces.train.job_report import told_to_cluster
from manyfaces.train.lease import Lease, LeaseLostError, refuse_held
from manyfaces.train.precision import settled, with_precision
from manyfaces.train.protocols.open import check_images, open_protocols
from manyfaces.train.record import EVENTS, METRICS, Record, last_event, read_rows
from manyfaces.train.report.own import draw_plots, write_own_page
from manyfaces.train.stopping import (
    INTERRUPTED,
    count_starts,
    forget_session,
    share_stop,
    stopped_line,
)
from manyfaces.train.store_lease import StoreLease, take_store_lease
from manyfaces.train.tracking.mirror import Mirror, Status, last_status
from manyfaces.train.tracking.origin import origin
from manyfaces.train.tracking.place import opening_lines, tracking_uri
from manyfaces.train.working_folder import bring, has_committed, run_store

WORK = "manyfaces.train.worker:work"
"""What every worker runs. Only workers import it: the process that a person started tells mistakes
without waiting for DeepSpeed."""
FAILED = "manyfaces.train.failures:workers_failed"
"""What is told of workers that failed, in a process of Ray's."""


@dataclass(frozen=True)
class _Claimed:
    """A run that this process may launch."""

    lease: Lease
    num_steps: int
    complete: bool
    quantities: QuantitiesByName
    store_lease: StoreLease | None
    """The lease of a run at a URL in its store; None for any other run."""

    def release(self) -> None:
        """Let the next one have the run."""
        self.lease.release()
        if self.store_lease is not None:
            self.store_lease.release()


def run(config: Config, console: Console, *, takeover: bool = False) -> None:
    """Check, launch, show, summarise. `takeover` takes the run from another process that has it.
    Raises `UserError` where the run cannot start or had to stop."""
    began = time.monotonic()
    parse(os.environ.get(VARIABLE, ""))  # what cannot be read is told before anything starts
    config = paths.mapped(absolute(config), WEIGHTS, checked_file)
    folder = RunFolder.of(config)
    config = _with_source(config, folder)
    if not under_torchrun():
        config = with_precision(config, settled(config, folder, console.print))
        _run(config, folder, console, _claim(config, folder, console, takeover=takeover), began)
        return
    with joined(config.cluster):
        settle = partial(settled, config, folder, console.print)
        config = with_precision(config, first_tells(settle, "find out the run's precision"))
        check_and_claim = partial(_claim, config, folder, console, takeover=takeover)
        claimed = first_alone(check_and_claim, "check the dataset and claim the run's folder")
        if claimed is None:
            _launch(config, folder, None)
        else:
            _run(config, folder, console, claimed, began)


def _claim(config: Config, folder: RunFolder, console: Console, *, takeover: bool) -> _Claimed:
    """Check all that can be known before any worker starts, and take the run's lease. What another
    process writes is left alone."""
    if not takeover:
        refuse_held(folder.path, console.print)
    store = run_store(config)
    dataset = open_data(config.data)
    with contextlib.ExitStack() as held:
        store_lease = None
        if store is not None:
            store.check()
            refuse_other(config, dataset, folder)
            refuse_other_in_store(config, dataset, store)
            store_lease = take_store_lease(store.remote, takeover=takeover)
            held.callback(store_lease.release)
            bring(store, folder, console, takeover=takeover)
        lease, num_steps, complete, quantities = _checked(
            config, dataset, folder, console, takeover=takeover
        )
        held.callback(lease.release)
        if store is not None:
            store.put_record(folder.path, folder.kept)
        held.pop_all()
    return _Claimed(lease, num_steps, complete, quantities, store_lease)


def _checked(
    config: Config, dataset: Dataset, folder: RunFolder, console: Console, *, takeover: bool
) -> tuple[Lease, int, bool, QuantitiesByName]:
    """Check the dataset and what the run needs besides, and take the lease of its folder: that, the
    steps in all, whether they are done, and what the protocols give."""
    _refuse(config, dataset, folder)
    num_steps = plan.num_steps(config, dataset.manifest.num_images)
    # Only what "finished" has said is complete: a kill between the last checkpoint and the last
    # evaluation leaves the latter to do.
    finished_at = (last_event(folder.path, "finished") or {}).get("step", -1)
    complete = finished_at >= num_steps and not under_torchrun()
    if not complete:
        refuse_without_gpus(config)
        launch.refuse(config.cluster)
        refuse_lost(folder)
    _look(config, dataset, console)
    if not complete:
        refuse_too_large(config, dataset, console.print)
    quantities = _check_protocols(config, images=not complete)
    lease = claim(config, dataset, folder, takeover=takeover)
    return lease, num_steps, complete, quantities


def _run(
    config: Config, folder: RunFolder, console: Console, claimed: _Claimed, began: float
) -> None:
    """Launch what was claimed, show it and summarise it."""
    quantities = claimed.quantities
    try:
        forget_session(folder)
        stop = share_stop(config, folder)
        params = flatten(redacted(config).model_dump())
        draw = partial(draw_plots, folder, quantities, console.print)
        # Last, as nothing ends its thread where another of these raises.
        mirror = Mirror(folder.path, config, params, draw=draw)
    except BaseException:
        claimed.release()
        raise

    def leave(_: str) -> None:
        mirror.abandon()
        stop.leave()

    claimed.lease.on_lost = leave
    known = 0 if claimed.complete else len(read_rows(folder.path / EVENTS))
    stop.last_words = partial(_last_words, mirror, folder, console)
    outcome: dict[str, Any] = {"kind": "stopped", "message": _without_a_word(config)}
    try:
        if claimed.complete:
            console.print(f"{folder.path}: already complete at step {claimed.num_steps}")
        else:
            resources = partial(launch.resources_line, config.cluster)
            with (
                told_to_cluster(config, folder, claimed.num_steps),
                Follower(folder.path, claimed.num_steps, console, quantities, resources),
            ):
                _launch(config, folder, claimed)
        # What could not be recorded leaves only the words of earlier sessions.
        ends = ("finished", "stopped", INTERRUPTED)
        outcome = last_event(folder.path, *ends, behind=known) or outcome
    finally:
        is_asked = stop.requested or outcome["kind"] == INTERRUPTED
        status: Status = "KILLED" if is_asked else "FAILED"
        if outcome["kind"] == "finished":
            status = "FINISHED"
        taken_over = _end(config, folder, console, claimed, mirror, status)
    if taken_over:
        raise LeaseLostError(taken_over)
    if outcome["kind"] == INTERRUPTED:
        raise StoppedError(outcome["message"])
    if outcome["kind"] != "finished":
        raise UserError(outcome["message"])
    console.print(
        summary_table(read_rows(folder.path / METRICS), quantities, time.monotonic() - began)
    )
    _say_where(config, folder, console)


def _end(
    config: Config,
    folder: RunFolder,
    console: Console,
    claimed: _Claimed,
    mirror: Mirror,
    status: Status,
) -> str:
    """Draw the plots, send MLflow and the store the rest, and release the run. Where another
    process has taken it over nothing is sent, and what is known of that process is returned."""
    try:
        if taken_over := claimed.lease.lost():
            mirror.abandon()
            return taken_over
        draw_plots(folder, claimed.quantities, console.print)
        if status != "KILLED":  # what was asked to end has little time
            write_own_page(folder, console.print)
        problem = mirror.close(status, folder.artifacts)
        for note in mirror.notes:
            console.print(f"MLflow: {note}")
        if problem:
            console.print(f"{folder.path / METRICS} has everything, MLflow does not: {problem}")
        _send_record(config, folder, claimed.store_lease, console)
        return ""
    finally:
        claimed.release()


def _launch(config: Config, folder: RunFolder, claimed: _Claimed | None) -> None:
    payload: dict[str, Any] = {"name": config.run.name, "config": config.model_dump(mode="json")}
    if claimed is not None:
        payload["lease"] = claimed.lease.id
        payload["origin"] = origin()
        if claimed.store_lease is not None:
            payload["store_lease"] = claimed.store_lease.number
    if faults := os.environ.get(VARIABLE):
        payload["faults"] = faults
    work = launch.Work(
        WORK, FAILED, payload, folder.logs, count_starts(folder), lambda: _saved(folder)
    )
    launch.launch(work, config.cluster, folder.path, jobs.package)


def _saved(folder: RunFolder) -> int:
    """The step of the newest checkpoint that is committed; -1 without one."""
    step = newest_step(folder.checkpoints)
    return -1 if step is None else step


def _look(config: Config, dataset: Dataset, console: Console) -> None:
    """Compare the dataset's bytes with what they should be, and say what it is."""
    for part in dataset.parts:
        manifest = part.manifest
        size = f"{manifest.num_images:,} images of {manifest.num_identities:,} identities"
        console.print(f"{part.where}: {verify(part, config.data.verify)}; {size}")
    forgotten = read_forgotten(dataset)
    if len(forgotten.samples) or len(forgotten.identities):
        console.print(
            f"forgotten: {len(forgotten.identities):,} identities, {len(forgotten.samples):,} "
            "single samples"
        )
    for part in dataset.parts:
        if part.edits is not None:
            console.print(f"{part.where}: edited: {part.edits.in_words()}")


def _refuse(config: Config, dataset: Dataset, folder: RunFolder) -> None:
    """Raise `UserError` for what can be known to fail before any worker starts, of a run that is
    complete too."""
    refuse_shown_secrets(config)
    tracking_uri(config)
    manifest = dataset.manifest
    for key, wanted, has in (
        ("data.expect_images", config.data.expect_images, manifest.num_images),
        ("data.expect_identities", config.data.expect_identities, manifest.num_identities),
    ):
        if wanted is not None and wanted != has:
            raise UserError(
                f"{key} is {wanted:,}, {dataset.where} has {has:,}; give the recipe its dataset, "
                f"or set {key}={has}"
            )
    check_sizes(dataset, config.data.order, config.train.batch_size)
    if config.train.batch_size > manifest.num_images:
        raise UserError(
            f"train.batch_size {config.train.batch_size} is more than the dataset's "
            f"{manifest.num_images} images; lower it"
        )
    check_initial(config, folder)


def _check_protocols(config: Config, *, images: bool) -> QuantitiesByName:
    """What the protocols of the run give; their images are held no longer than it takes to check
    them, where that is wanted."""
    protocols = open_protocols(config)
    if images:
        check_images(protocols, config.data.image_hw)
    quantities = {protocol.name: protocol.quantities for protocol in protocols}
    _refuse_unknown_metric(config, quantities)
    return quantities


def _refuse_unknown_metric(config: Config, quantities: QuantitiesByName) -> None:
    """Raise `UserError` where the best checkpoint is to be told by what no protocol gives."""
    best = config.checkpoint.best
    known = [metric(name, each) for name, described in quantities.items() for each in described]
    if best is None or best.metric in known:
        return
    near = get_close_matches(best.metric, known, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    has = ", ".join(known) or "none: give evaluation.pairs or evaluation.protocols"
    raise UserError(
        f"checkpoint.best.metric {best.metric}: no protocol of the run gives it; {meant}the "
        f"metrics are {has}"
    )


def absolute(config: Config) -> Config:
    """The same with absolute paths, and with the checkpoint in place of the run that
    `run.resume_from` may name."""
    config = paths.absolute(config)
    resume_from = config.run.resume_from
    if resume_from is not None and names_checkpoint(Path(resume_from)):
        update = {"resume_from": str(chosen(Path(resume_from)))}
        run = config.run.model_copy(update=update)
        config = config.model_copy(update={"run": run})
    return config


def _with_source(config: Config, folder: RunFolder) -> Config:
    """The same with a folder of this machine in place of the URL that `run.resume_from` may be,
    where the run is going to start from it: not where it has a checkpoint of its own, here or in
    its store."""
    url = url_of(config.run.resume_from or "")
    if url is None or newest(folder.checkpoints) is not None:
        return config
    if (store := run_store(config)) is not None and has_committed(store):
        return config
    update = {"resume_from": str(fetched(url, config.run.work_dir))}
    return config.model_copy(update={"run": config.run.model_copy(update=update)})


def _send_record(
    config: Config, folder: RunFolder, store_lease: StoreLease | None, console: Console
) -> None:
    """Have in the store of a run at a URL how it ended."""
    if (store := run_store(config)) is None or store_lease is None:
        return
    try:
        store_lease.check()
        store.put_record(folder.path, folder.kept)
    except UserError as error:
        console.print(f"{folder.path} has everything, the store does not: {error}")


def _without_a_word(config: Config) -> str:
    told = "the workers ended without a word"
    where = "; does every node see run.work_dir?" if run_url(config) is not None else ""
    return f"{told}{where}"


def _last_words(mirror: Mirror, folder: RunFolder, console: Console, reason: str) -> None:
    """What is told before the process ends by force."""
    mirror.close(last_status(folder.path), timeout_s=3)
    last = last_event(folder.path, "start", "checkpoint", "finished", "stopped", INTERRUPTED)
    if last is not None and last["kind"] in ("finished", "stopped", INTERRUPTED):
        # All is saved; what hung comes after it.
        console.print(last["message"])
        return
    line = stopped_line(folder, reason)
    console.print(line)
    Record(folder.path).event(INTERRUPTED, line)


def _say_where(config: Config, folder: RunFolder, console: Console) -> None:
    console.print(f"checkpoint  {newest(folder.checkpoints)}")
    if (url := run_url(config)) is not None:
        console.print(f"store       {url}")
    console.print(f"plots       {folder.plots}")
    if folder.report.exists():
        console.print(f"report      {folder.report}")
    for number, line in enumerate(opening_lines(folder.path, tracking_uri(config))):
        console.print(f"{'' if number else 'MLflow':12}{line}")
