"""What every worker does with a run: build, restore, loop, close."""

import gc
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist

from manyfaces.cluster.stop import Stop, StoppedError
from manyfaces.cluster.world import World, on_all_ranks
from manyfaces.configs import plan
from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load_stored
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import Dataset, open_data
from manyfaces.data.dataset.verify import verify
from manyfaces.data.feed.loader import Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.feed.view import View, main_view
from manyfaces.train.build import build
from manyfaces.train.checkpoint.finder import Found, find
from manyfaces.train.checkpoint.network import Network
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer
from manyfaces.train.evaluation.decoding import worker_decode_threads
from manyfaces.train.evaluation.report import forget_reports, save_summary
from manyfaces.train.evaluation.result import Result
from manyfaces.train.faults import FaultPlan, parse
from manyfaces.train.folder import RunFolder
from manyfaces.train.lease import Launch, take_writer
from manyfaces.train.left_out import LeftOutBatches
from manyfaces.train.loop import Parts, Progress, train
from manyfaces.train.not_finite import GoingBack, NotFinite
from manyfaces.train.protocols.open import open_protocols
from manyfaces.train.protocols.protocol import Protocol
from manyfaces.train.record import NoRecord, Record
from manyfaces.train.run_identity import check_worker
from manyfaces.train.sample_log import SampleLog, open_log
from manyfaces.train.saving import begin_sending, open_checkpointer, refuse_unseen, sending
from manyfaces.train.startup import Startup
from manyfaces.train.stopping import INTERRUPTED, finishing, share_stop, stopped_line
from manyfaces.train.tracking.inputs import dataset_facts
from manyfaces.train.tracking.machines import Machines
from manyfaces.train.tracking.system import sampling
from manyfaces.train.watchdog import Watchdog

VERSIONS = ("manyfaces", "torch", "deepspeed", "nvidia-dali-cuda130")


def work(payload: dict[str, Any], startup: Startup | None = None) -> None:
    """One worker's part of a run; `startup` has measured its start so far. Errors that all ranks
    meet alike are written to the record, not raised."""
    startup = startup or Startup()
    config = load_stored(payload["config"], "the launcher's configuration")
    world = World.current()
    torch.set_num_threads(config.cluster.threads_per_worker)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    folder = RunFolder.of(config)
    record = Record(folder.path) if world.rank == 0 else NoRecord()
    watchdog = _watchdog(config, world, folder, payload.get("faults", ""))
    stop = share_stop(config, folder, looks=world.rank == 0)
    stop.warn = record.event
    launch, writer = Launch(folder.path, payload.get("lease")), None
    try:
        watchdog.phase("start")
        on_all_ranks(lambda: refuse_unseen(config, folder, launch))
        writer = on_all_ranks(lambda: take_writer(launch) if world.rank == 0 else None)
        _refuse_small_batch(config, world)
        startup.done("lease")
        dataset, protocols = on_all_ranks(lambda: _open(config, folder))
        startup.done("dataset")
        machines = Machines.of(world)
        facts = {**machines.facts(), "datasets": dataset_facts(dataset)}
        store_lease = payload.get("store_lease")
        session = _Session(
            config,
            world,
            folder,
            record,
            watchdog,
            stop,
            dataset,
            protocols,
            open_checkpointer(config, folder, record, watchdog, writer, store_lease),
            dist.new_group(backend="gloo"),
            startup,
            facts | ({"origin": payload["origin"]} if "origin" in payload else {}),
        )
        with _sampled(config, world, folder, machines):
            _run(session)
    except StoppedError as error:
        _record_end(record, INTERRUPTED, stopped_line(folder, str(error)))
    except UserError as error:
        # A run that was taken over is another one's to record.
        if not (launch.lost() if writer is None else writer.lost()):
            _record_end(record, "stopped", str(error))
    except Exception as error:
        watchdog.fail(error)
        raise
    finally:
        watchdog.close()
        if writer is not None:
            writer.release()


def _watchdog(config: Config, world: World, folder: RunFolder, faults: str) -> Watchdog:
    """This rank's watchdog, which has the planned faults injected."""
    planned = FaultPlan(parse(faults), world.rank, folder.path, folder.faults)
    return Watchdog(
        config.cluster.step_timeout_s,
        lambda message: Record(folder.path).event("hung", message),
        world.rank,
        world.size,
        folder.path,
        planned.reach,
    )


def _record_end(record: Record, kind: str, message: str) -> None:
    """Record how the run ended; where the disk is full that is no reason to start workers again."""
    try:
        record.event(kind, message)
    except OSError as error:
        print(f"{message} (not recorded: {error.strerror})", file=sys.stderr)  # noqa: T201


@dataclass(frozen=True)
class _Session:
    """What stays while a run goes back to a checkpoint. As its lease, its heartbeats and its
    process group stay, no process is started again for it."""

    config: Config
    world: World
    folder: RunFolder
    record: Record
    watchdog: Watchdog
    stop: Stop
    dataset: Dataset
    protocols: list[Protocol]
    checkpointer: Checkpointer
    group: dist.ProcessGroup
    """The ranks over gloo, apart from the checkpointer's, whose thread may use that at any time."""
    startup: Startup
    facts: Mapping[str, Any]
    """What each start records of where the run comes from, what it reads and on what it runs."""


def _sampled(
    config: Config, world: World, folder: RunFolder, machines: Machines
) -> AbstractContextManager[None]:
    """Sample the use of this node, if no other rank does."""
    period_s = config.tracking.system_metrics_s if machines.is_first_of_host(world.rank) else 0
    return sampling(
        folder.path,
        period_s,
        lambda line: Record(folder.path).event("system", line),
        has_gpus=world.device.type == "cuda",
    )


def _run(session: _Session) -> None:
    """Train to the end, however often the run goes back. Collective."""
    while not _trained(session):
        # Engines refer to themselves: without this the memory of the old one would go later.
        gc.collect()
        if session.world.device.type == "cuda":
            torch.cuda.empty_cache()


def _trained(session: _Session) -> bool:
    """Train from the newest checkpoint to the end; whether it came to the end, as it does not where
    the run goes back. Collective.

    A run that goes back builds all of it anew, just as processes that were started again would:
    they come to the same state, whoever launched them and however often.
    """
    config, folder, checkpointer = session.config, session.folder, session.checkpointer
    session.watchdog.phase("restore")
    beat = session.watchdog.beat
    found = find(folder.checkpoints, config.run.resume_from, checkpointer.group, beat)
    if found is not None:
        checkpointer.began_with(found.path)
    begin_sending(checkpointer, found)
    # What is being sent is waited for where the start fails as well.
    with sending(checkpointer, session.record, session.watchdog):
        ended = _train_from(session, found)
    if ended is None:
        return False
    results, step = ended
    checkpointer.retain(step)  # now the last step is evaluated
    _record_results(session, results, step)
    return True


def _train_from(session: _Session, found: Found | None) -> tuple[Sequence[Result], int] | None:
    """Build all that trains and let it train: the last evaluation and the last step, or None where
    the run goes back. Collective."""
    config, world, folder, record = session.config, session.world, session.folder, session.record
    dataset, checkpointer = session.dataset, session.checkpointer
    stop, startup = session.stop, session.startup
    known = found.state.left_out if found else ()
    left_out = LeftOutBatches(folder.left_out, known, checkpointer.group)
    total = plan.total_samples(config, dataset.manifest.num_images)
    _refuse_finished(found, folder, total)
    on_all_ranks(stop.check)
    startup.done("checkpoint compared")
    beat = session.watchdog.beat
    engine, network, objective = build(
        config, world, dataset, found, checkpointer.group, record, beat, startup
    )
    on_all_ranks(stop.check)
    progress = _progress(config, found)
    start_line = _start_line(found, world, progress, left_out)
    samples = on_all_ranks(lambda: _open_records(session, progress.step, start_line))
    views = objective.views(main_view(config.data))
    with on_all_ranks(partial(_loader, session, views, progress.position, total)) as loader:
        parts = Parts(
            config,
            world,
            engine,
            network,
            objective,
            loader,
            session.protocols,
            checkpointer,
            record,
            session.watchdog,
            stop,
            samples,
            _constant_state(config, dataset, network),
            startup,
            NotFinite(config.train.on_not_finite, left_out, loader, checkpointer, record),
            session.group,
        )
        startup.done("loader")
        try:
            with finishing(checkpointer.wait):
                return train(parts, progress), progress.step
        except GoingBack:
            engine.close()
            return None


def _open_records(session: _Session, step: int, start_line: str) -> SampleLog:
    """Record the start behind this step, and open what this rank writes of its samples; what was
    recorded of steps that are made again is forgotten."""
    config, world, folder, record = session.config, session.world, session.folder, session.record
    record.rewind(step)
    if world.rank == 0:
        forget_reports(folder.path, step)
    samples = open_log(folder.samples, world.rank, step, config.tracking.log_samples)
    record.event("start", start_line, world_size=world.size, step=step, **session.facts)
    return samples


def _record_results(session: _Session, results: Sequence[Result], step: int) -> None:
    """Record that the run is complete, with its last evaluation."""
    if session.world.rank == 0 and results:
        save_summary(results, session.folder.evaluation, step)
    if session.checkpointer.uploads is not None:
        session.watchdog.phase("upload")
        session.checkpointer.uploads.finish(everything=True)
    session.record.event("finished", f"finished at step {step}", step=step)


def _refuse_small_batch(config: Config, world: World) -> None:
    if config.train.batch_size < 2 * world.size:
        raise UserError(
            f"train.batch_size {config.train.batch_size}: BatchNorm needs 2 images on each of "
            f"{world.size} workers"
        )


def _open(config: Config, folder: RunFolder) -> tuple[Dataset, list[Protocol]]:
    """What this node sees of the data, which is what the launching process saw: that one has looked
    at the bytes."""
    dataset = open_data(config.data)
    check_worker(config, dataset, folder)
    for part in dataset.parts:
        verify(part, "sizes")
    return dataset, open_protocols(config)


def _loader(session: _Session, views: Mapping[str, View], position: int, end: int) -> Loader:
    """This rank's part of the stream from `position` to `end`; every rank writes down what it meets
    on the way."""
    config, world, folder = session.config, session.world, session.folder
    dataset = session.dataset
    quarantine = Quarantine(
        folder.quarantine,
        dataset,
        config.data.max_bad_share,
        lambda line: Record(folder.path).event("quarantine", line),
    )
    return Loader(
        dataset,
        config.data,
        views=views,
        seed=config.run.seed,
        batch_size=config.train.batch_size,
        rank=world.rank,
        world_size=world.size,
        position=position,
        end=end,
        device=world.device,
        decode_threads=worker_decode_threads(config),
        quarantine=quarantine,
        tell=lambda line: Record(folder.path).event("store", line),
    )


def _refuse_finished(found: Found | None, folder: RunFolder, total: int) -> None:
    if found is None or found.path.parent == folder.checkpoints:
        return
    if found.state.position >= total:
        raise UserError(
            f"run.resume_from {found.path} has seen {found.state.position:,} samples of {total:,}; "
            "raise train.epochs"
        )


def _progress(config: Config, found: Found | None) -> Progress:
    if found is None:
        return Progress()
    # Steps are counted by this run's batches: a run that was resumed from another's checkpoint may
    # have other ones.
    position = found.state.position
    return Progress(position // config.train.batch_size, position, found.state.seconds)


def _constant_state(config: Config, dataset: Dataset, network: Network) -> RunState:
    return RunState(
        config,
        dataset.manifest.fingerprint,
        dataset.manifest.num_identities,
        config.run.seed,
        versions={name: version(name) for name in VERSIONS},
        base_sha256=network.built.base_sha256,
    )


def _start_line(
    found: Found | None, world: World, progress: Progress, left_out: LeftOutBatches
) -> str:
    workers = f"{world.size} worker{'s' if world.size > 1 else ''} on {world.device.type}"
    without = f"; left out: {left_out}" if left_out else ""
    if found is None:
        return f"{workers}: a fresh start, as the run has no checkpoint{without}"
    where = f"{found.path.name} at sample {progress.position:,}"
    return f"{workers}: resuming {where} ({found.why}){without}"
