"""The train loop: batches in, steps, records, evaluations and checkpoints out."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.distributed as dist

from manyfaces.cluster.world import World, agree
from manyfaces.configs import plan
from manyfaces.configs.schema import Config, UserError
from manyfaces.data.dataset.write import IDENTITIES
from manyfaces.data.feed.loader import Batch, Loader
from manyfaces.data.sources.pairs import Pairs
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.checkpoint.checkpoint import Checkpointer, Snapshot, candidates
from manyfaces.train.engine import Engine, NotFiniteError
from manyfaces.train.evaluation.evaluate import Evaluated, evaluate
from manyfaces.train.record import Record
from manyfaces.train.schedule import learning_rate
from manyfaces.train.step import train_step
from manyfaces.train.tracking import RUN_FILE
from manyfaces.train.watchdog import Watchdog


@dataclass
class Progress:
    """Where the run stands: what a checkpoint restores besides tensors."""

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    """Of training, evaluation not counted, over all sessions."""


@dataclass(frozen=True)
class Parts:
    """What the loop works with; built by `run`."""

    config: Config
    world: World
    engine: Engine
    head: PartialFC
    loader: Loader
    pairs: list[Pairs]
    checkpointer: Checkpointer
    record: Record
    watchdog: Watchdog
    state: dict[str, Any]
    """The constant part of a checkpoint's `state.json`."""


def train(parts: Parts, progress: Progress) -> list[Evaluated]:
    """Run to the last step; returns its evaluation. Raises `UserError` on every rank alike when the
    run has to stop."""
    config, world = parts.config, parts.world
    num_images = parts.loader.dataset.manifest.num_images
    num_steps, total = plan.num_steps(config, num_images), plan.total_samples(config, num_images)
    warmup, batch_size = plan.warmup_samples(config, num_images), config.train.batch_size
    evaluated: list[Evaluated] = []
    logged_step, logged_at, waited = progress.step, time.monotonic(), 0.0

    parts.watchdog.phase("data")
    for batch, wait, lost in timed(parts.loader):
        began = time.monotonic() - wait
        lr = learning_rate(
            config.train.schedule, config.train.optimizer.lr, batch.position, warmup, total
        )
        parts.watchdog.phase(f"step {progress.step + 1}")
        try:
            result = train_step(
                parts.engine,
                parts.head,
                batch,
                lr=lr,
                batch_size=batch_size,
                seed=config.run.seed,
                rank=world.rank,
                last=lost is not None,
            )
        except NotFiniteError as error:
            parts.checkpointer.wait()  # what is being written is good
            raise UserError(_not_finite(parts, batch, progress.step + 1, error)) from error
        progress.step, progress.position = progress.step + 1, batch.position + batch_size
        last = progress.step == num_steps
        progress.seconds += (
            time.monotonic() - began
        )  # the step has waited for the device: it knows the gradient's norm
        waited += wait

        if progress.step % config.tracking.log_every_steps == 0 or last:
            elapsed = time.monotonic() - logged_at
            parts.record.metrics(
                progress.step,
                **{
                    "train/loss": float(result.loss),
                    "train/lr": lr,
                    "train/grad_norm": result.grad_norm,
                    "train/epoch": progress.position / num_images,
                },
                **{
                    "images_per_s": (progress.step - logged_step) * batch_size / elapsed,
                    "data_wait_share": waited / elapsed,
                },
                minutes=progress.seconds / 60,
                **(
                    {"quarantined": len(parts.loader.quarantine.samples)}
                    if parts.loader.quarantine.samples
                    else {}
                ),
            )
            logged_step, logged_at, waited = progress.step, time.monotonic(), 0.0

        if parts.pairs and (
            last
            or (
                config.evaluation.every_steps and progress.step % config.evaluation.every_steps == 0
            )
        ):
            parts.watchdog.phase("evaluation")
            paused = time.monotonic()
            evaluated = _evaluate(parts, progress)
            logged_at += time.monotonic() - paused
        if progress.step % config.checkpoint.every_steps == 0 or last or result.last:
            parts.watchdog.phase("checkpoint")
            paused = time.monotonic()
            parts.checkpointer.save(snapshot(parts, progress))
            progress.seconds += time.monotonic() - paused
        if result.last:
            parts.checkpointer.wait()
            agree(partial(_raise, lost))
        parts.watchdog.phase("data")
    parts.watchdog.phase("checkpoint")
    parts.checkpointer.wait()
    if (
        parts.pairs and not evaluated
    ):  # the last session ended between the last checkpoint and its evaluation
        evaluated = _evaluate(parts, progress)
    return evaluated


def timed(loader: Loader) -> Iterator[tuple[Batch, float, UserError | None]]:
    """Batches with the seconds they were waited for, one batch ahead: with the last one that can be
    had comes why there is no further.

    So a rank that loses its data can tell the others in a step that all of them still make.
    Collective before the first batch.
    """
    batches = iter(loader)
    asked = time.monotonic()
    batch, lost = agree(lambda: next(batches, None)), None
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


def snapshot(parts: Parts, progress: Progress) -> Snapshot:
    """Copy everything that a checkpoint holds, between two steps. Collective."""
    moments = parts.engine.read_moments()
    first = parts.world.rank == 0
    mlflow = parts.checkpointer.folder.parent / RUN_FILE
    state = {
        **parts.state,
        "step": progress.step,
        "position": progress.position,
        "seconds": progress.seconds,
        "head": parts.head.numbers(),
        "mlflow": json.loads(mlflow.read_text()) if mlflow.exists() else None,
    }
    return Snapshot(
        step=progress.step,
        backbone={
            k: v.detach().cpu().clone().contiguous() for k, v in parts.engine.weights().items()
        }
        if first
        else {},
        optimizer={k: v.detach().cpu().clone().contiguous() for k, v in moments.items()}
        if first
        else {},
        head={k: v.detach().cpu().clone() for k, v in parts.head.tensors().items()},
        num_classes=parts.head.num_classes,
        state=state,
        identities=names
        if first and (names := parts.checkpointer.folder.parent / IDENTITIES).exists()
        else None,
    )


def _evaluate(parts: Parts, progress: Progress) -> list[Evaluated]:
    config = parts.config
    if (
        parts.world.size > 1
    ):  # BatchNorm's running statistics are each rank's own; rank 0's are the model's
        for buffer in parts.engine.module.buffers():
            dist.broadcast(buffer, 0)
    evaluated = []
    for pairs in parts.pairs:
        done = evaluate(
            parts.engine.module,
            pairs,
            image_px=config.data.image_px,
            batch_size=config.evaluation.batch_size,
            device=parts.world.device,
            autocast=parts.engine.autocast,
            progress=lambda _: parts.watchdog.phase("evaluation"),
        )
        report = done.report
        known = {
            "auc": report.auc,
            **{f"tar_at_far_{far}": tar for far, tar in report.tar_at_far.items()},
        }
        known |= {"accuracy": report.accuracy, "best_accuracy": report.best_accuracy}
        scores = {f"{done.name}/{key}": value for key, value in known.items() if value is not None}
        parts.record.metrics(progress.step, **scores, minutes=progress.seconds / 60)
        evaluated.append(done)
    return evaluated


def _not_finite(parts: Parts, batch: Batch, step: int, error: NotFiniteError) -> str:
    """Name the step, the batch's samples and the last good checkpoint."""
    if parts.world.rank != 0:  # only rank 0's words are kept
        return str(error)
    names = [
        parts.loader.dataset.name(int(i))
        for i in parts.loader.order.ids(batch.position, parts.config.train.batch_size)
    ]
    parts.record.event("not_finite", str(error), step=step, position=batch.position, samples=names)
    good = next(
        (path for path, _, fault in candidates(parts.checkpointer.folder) if not fault), None
    )
    remedy = (
        "lower train.optimizer.lr or look at the samples, and start from it under a new run.name "
        "with run.resume_from"
    )
    where = (
        f"samples {batch.position} to {batch.position + len(names) - 1} ({', '.join(names[:3])}, "
        f"... all {len(names)} in events.jsonl)"
    )
    return (
        f"step {step}: {error}, not finite, at {where}; nothing after it is kept; the last good "
        f"checkpoint is {good or 'none'}; {remedy}"
    )
