"""The train loop: batches in, steps, records, evaluations and checkpoints out."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from manyfaces.cluster.stop import Stop, StoppedError
from manyfaces.cluster.world import World, on_all_ranks
from manyfaces.configs import plan
from manyfaces.configs.errors import UserError
from manyfaces.configs.schedules.schedule import learning_rate
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.feed.loader import Batch, Loader
from manyfaces.train.checkpoint.network import Network
from manyfaces.train.checkpoint.snapshot import Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.writer import Checkpointer
from manyfaces.train.engine import Engine, NotFiniteError
from manyfaces.train.evaluation.decoding import worker_decode_threads
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.report import report_folder, save_results
from manyfaces.train.evaluation.result import Result
from manyfaces.train.not_finite import NotFinite
from manyfaces.train.objectives.objective import Moment, Objective
from manyfaces.train.part_times import PartTimes
from manyfaces.train.protocols.protocol import Protocol
from manyfaces.train.rates import Rates, own_parts
from manyfaces.train.record import Record
from manyfaces.train.sample_log import SampleLog
from manyfaces.train.startup import Startup
from manyfaces.train.step import StepResult, pass_over, train_step
from manyfaces.train.tracking.place import mlflow_run
from manyfaces.train.watchdog import Watchdog


@dataclass
class Progress:
    """Where the run stands: what a checkpoint restores besides tensors."""

    step: int = 0
    position: int = 0
    """Samples of the stream that were trained on."""
    seconds: float = 0.0
    """Seconds of training over all sessions, evaluation not counted."""


@dataclass(frozen=True)
class Parts:
    """What the loop works with; built by `session`."""

    config: Config
    world: World
    engine: Engine
    network: Network
    objective: Objective
    loader: Loader
    protocols: Sequence[Protocol]
    checkpointer: Checkpointer
    record: Record
    watchdog: Watchdog
    stop: Stop
    samples: SampleLog
    state: RunState
    """What does not change in a checkpoint's state."""
    startup: Startup
    """Measures how long it takes to the first step."""
    not_finite: NotFinite
    """What is done where numbers are not finite, and which batches were left out."""
    group: dist.ProcessGroup
    """The ranks over gloo, for what the loop sends while a checkpoint may be written."""


def train(parts: Parts, progress: Progress) -> list[Result]:
    """Run to the last step; returns its evaluation. Raises `UserError` on every rank alike when the
    run has to stop, `StoppedError` when it was asked to, behind a checkpoint, and `GoingBack` when
    it has to go on from its last checkpoint."""
    config, num_images = parts.config, parts.loader.dataset.manifest.num_images
    num_steps = plan.num_steps(config, num_images)
    results: list[Result] = []
    rates = Rates(PartTimes(parts.world.device), own_parts(config), parts.group)
    if config.checkpoint.background:
        parts.checkpointer.reserve(snapshot(parts, progress))
    parts.stop.wait_for_checkpoint()
    parts.watchdog.made(progress.step)
    if _evaluation_is_left(parts, progress.step):
        results = evaluate_all(parts, progress, saved=True)
    rates.restart()
    parts.watchdog.phase("data")
    for batch, waited_s, lost in timed(parts.loader):
        began = time.monotonic() - waited_s
        parts.startup.done("first batch")
        parts.watchdog.phase(f"step {progress.step + 1}")
        last = lost is not None or parts.stop.requested or parts.stop.wants_checkpoint
        moment = _moment(parts, batch, last=last)
        result, last = _step(parts, batch, moment, progress.step + 1, rates.times)
        progress.step += 1
        parts.watchdog.made(progress.step)
        progress.position = moment.position + moment.batch_size
        # The step has waited for the device: it knows the gradient's norm.
        progress.seconds += time.monotonic() - began
        rates.times.add("data", waited_s)
        is_end = progress.step == num_steps
        _record_step(parts, progress, batch, moment, result, rates, is_end=is_end)
        # What was paid for is saved before an evaluation, which may fail.
        saved = is_end or last or _is_due(progress.step, config.checkpoint.every_steps)
        if saved:
            with rates.times.measured("checkpoint"):
                _save(parts, progress, last=is_end or (last and _ends(parts, lost)))
        if last:
            _follow_request(parts, rates, is_end=is_end)
        if parts.protocols and (is_end or _is_due(progress.step, config.evaluation.every_steps)):
            with rates.paused("evaluation"):
                results = evaluate_all(parts, progress, saved=saved)
        if last:
            parts.checkpointer.wait()
            on_all_ranks(partial(_raise, lost))
        parts.watchdog.phase("data")
    parts.watchdog.phase("checkpoint")
    parts.checkpointer.wait()
    if parts.protocols and not results:
        # The last session ended between the last checkpoint and its evaluation.
        results = evaluate_all(parts, progress, saved=True)
    return results


def _ends(parts: Parts, lost: UserError | None) -> bool:
    """Whether the run ends behind this step, on any rank, as it does not where only a checkpoint
    was wanted. Collective."""
    ends = torch.tensor([int(lost is not None or parts.stop.requested)])
    dist.all_reduce(ends, group=parts.group)
    return bool(ends.item())


def _evaluation_is_left(parts: Parts, step: int) -> bool:
    """The session before saved this step and was ended before it was evaluated. Collective."""
    if not parts.protocols or step == 0 or not _is_due(step, parts.config.evaluation.every_steps):
        return False
    names = parts.record.measured(step)
    is_known = all(
        any(name.startswith(f"{protocol.name}/") for name in names) for protocol in parts.protocols
    )
    left = [bool(names) and not is_known]
    dist.broadcast_object_list(left, 0)
    return left[0]


def _save(parts: Parts, progress: Progress, *, last: bool) -> None:
    """Begin a checkpoint; `last` says that the run ends here. Collective."""
    parts.watchdog.phase("checkpoint")
    paused = time.monotonic()
    parts.checkpointer.save(snapshot(parts, progress), last=last)
    progress.seconds += time.monotonic() - paused


def _follow_request(parts: Parts, rates: Rates, *, is_end: bool) -> None:
    """Do what some rank was asked for, once the checkpoint is committed: raise `StoppedError`, or
    wait where its worker is about to be replaced. Collective."""
    parts.stop.wants_checkpoint = False
    with rates.times.measured("checkpoint"):
        parts.checkpointer.wait()
        if not is_end or parts.protocols:
            on_all_ranks(parts.stop.check)
    if is_end:
        return
    seconds = torch.tensor([parts.stop.pause_s])
    dist.all_reduce(seconds, dist.ReduceOp.MAX, group=parts.group)
    if seconds > 0:
        parts.watchdog.phase("replacement")
        with rates.paused():
            parts.stop.pause(seconds.item(), parts.watchdog.beat)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def timed(loader: Loader) -> Iterator[tuple[Batch, float, UserError | None]]:
    """Batches with the seconds they were waited for, one batch ahead: with the last one that can be
    had comes why there is no further.

    So a rank that loses its data can tell the others in a step that all of them still make.
    Collective before the first batch.
    """
    batches = iter(loader)
    asked = time.monotonic()
    batch, lost = on_all_ranks(lambda: next(batches, None)), None
    while batch is not None:
        following = None
        try:
            following = next(batches, None)
        except UserError as error:
            lost = error
        yield batch, time.monotonic() - asked, lost
        batch, asked = following, time.monotonic()


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _moment(parts: Parts, batch: Batch, *, last: bool) -> Moment:
    config, num_images = parts.config, parts.loader.dataset.manifest.num_images
    lr = learning_rate(
        config.train.schedule,
        config.train.optimizer.lr,
        batch.position,
        plan.warmup_samples(config, num_images),
        plan.total_samples(config, num_images),
        num_images,
    )
    return Moment(batch.position, config.train.batch_size, lr, last)


def _step(
    parts: Parts, batch: Batch, moment: Moment, step: int, times: PartTimes
) -> tuple[StepResult | None, bool]:
    """What the step gives, None for a batch that is left out, and whether some rank can make no
    further one, or wants a checkpoint."""
    if parts.not_finite.skips(batch.position):
        return None, pass_over(moment, parts.world.device)
    try:
        result = train_step(
            parts.engine,
            parts.objective,
            batch,
            moment,
            seed=parts.config.run.seed,
            rank=parts.world.rank,
            num_micro_batches=parts.config.train.num_micro_batches(parts.world.size),
            times=times,
        )
    except NotFiniteError as error:
        reason = str(error)
    else:
        return result, result.last
    parts.not_finite.take(batch.position, step, reason)


def _record_step(
    parts: Parts,
    progress: Progress,
    batch: Batch,
    moment: Moment,
    result: StepResult | None,
    rates: Rates,
    *,
    is_end: bool,
) -> None:
    """Record and count what the step gave, None where its batch was left out. Collective."""
    if parts.startup.end("first step"):
        with contextlib.suppress(OSError):  # a full disk ends no training
            seconds = parts.startup.seconds
            parts.record.event("ready", str(parts.startup), step=progress.step, seconds=seconds)
    if result is None:
        return
    parts.samples.made(progress.step, batch)
    rates.count(moment.batch_size)
    if is_end or _is_due(progress.step, parts.config.tracking.log_every_steps):
        _log(parts, progress, moment, result, rates)


def _log(
    parts: Parts, progress: Progress, moment: Moment, result: StepResult, rates: Rates
) -> None:
    num_images = parts.loader.dataset.manifest.num_images
    quarantined = len(parts.loader.quarantine.samples)
    pace, told = rates.take()
    values: dict[str, float] = {
        "train/loss": float(result.loss),
        "train/lr": moment.lr,
        "train/grad_norm": result.grad_norm,
        "train/epoch": progress.position / num_images,
        **{f"train/{name}": float(value) for name, value in result.metrics.items()},
        **pace,
        **parts.startup.take_metrics(),
        "minutes": progress.seconds / 60,
    }
    if quarantined:
        values["quarantined"] = quarantined
    # A checkpoint that a full disk does not take ends no training, and nor does this row.
    with contextlib.suppress(OSError):
        parts.record.metrics(progress.step, **values)
        for each in told:
            parts.record.event("slow_rank", each.line, step=progress.step, **each.facts)


def snapshot(parts: Parts, progress: Progress) -> Snapshot:
    """Everything that a checkpoint holds, not copied: it is as it says until the next step.
    Collective."""
    weights, moments = parts.engine.weights(), parts.engine.read_moments()
    first, run_folder = parts.world.rank == 0, parts.checkpointer.folder.parent
    names = run_folder / IDENTITIES
    backbone, beside_backbone = parts.network.split(weights if first else {})
    return Snapshot(
        state=parts.state.at(
            step=progress.step,
            position=progress.position,
            seconds=progress.seconds,
            numbers=parts.objective.numbers(),
            mlflow=mlflow_run(run_folder),
            left_out=parts.not_finite.left_out.batches,
        ),
        backbone=backbone,
        beside_backbone=beside_backbone,
        optimizer=moments if first else {},
        objective=parts.objective.state(),
        identities=names if first and names.exists() else None,
    )


def evaluate_all(parts: Parts, progress: Progress, *, saved: bool) -> list[Result]:
    """Evaluate the network by each protocol and record the metrics. `saved`: there is a checkpoint
    of these weights. Collective; a request to stop is followed at once."""
    parts.watchdog.phase("evaluation")
    config = parts.config
    if parts.world.size > 1:
        # BatchNorm's running statistics are each rank's own; rank 0's are the model's.
        for buffer in parts.network.module.buffers():
            dist.broadcast(buffer, 0)
    results = []
    try:
        with parts.engine.whole() as network:
            embedder = Embedder(
                parts.network.evaluated_in(network),
                config.model,
                config.data.image_hw,
                parts.world.device,
                autocast=parts.engine.autocast,
                batch_size=config.evaluation.batch_size,
                decode_threads=worker_decode_threads(config),
            )
            for protocol in parts.protocols:
                result = evaluate(protocol, embedder, partial(_is_evaluating, parts))
                _record_result(parts, progress, result)
                results.append(result)
    except UserError as error:
        # All ranks raise it alike: a checkpoint that is being written is finished first.
        if isinstance(error, StoppedError) and not saved:
            _save(parts, progress, last=True)
        parts.checkpointer.wait()
        raise
    return results


def _record_result(parts: Parts, progress: Progress, result: Result) -> None:
    """Record what a protocol gave, for people and programs. It is drawn by the process that
    launched the run: here the other ranks would wait for it."""
    if parts.world.rank == 0:
        run = parts.checkpointer.folder.parent
        save_results([result], report_folder(run, progress.step), progress.step)
    parts.record.metrics(progress.step, **result.metrics(), minutes=progress.seconds / 60)


def _is_evaluating(parts: Parts, images: int) -> None:
    """Some more images are embedded: an evaluation ends here when the run was asked to stop."""
    parts.watchdog.phase("evaluation")
    parts.stop.look()
    parts.stop.check()
