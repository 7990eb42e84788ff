"""A run from its configuration to its last checkpoint: `run` in the process that a person started,
`work` in every worker."""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from rich.console import Console

from manyfaces.cluster import jobs, launch
from manyfaces.cluster.world import World, agree
from manyfaces.configs import plan, rng
from manyfaces.configs.identity import flatten, identity
from manyfaces.configs.load import dump
from manyfaces.configs.schema import Config, CustomMargin, UserError
from manyfaces.data.dataset.forgotten import read_forgotten
from manyfaces.data.dataset.index import file_sha256, verify, write_atomic
from manyfaces.data.dataset.mixture import AnyDataset, open_data
from manyfaces.data.dataset.names import names_sha256, write_names
from manyfaces.data.dataset.write import IDENTITIES
from manyfaces.data.feed.loader import Loader, Quarantine
from manyfaces.data.sources.pairs import Pairs, read_bin
from manyfaces.models.backbones.backbone import build
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.checkpoint.checkpoint import (
    Checkpointer,
    Found,
    candidates,
    read_backbone,
    read_optimizer,
    read_state,
)
from manyfaces.train.engine import Engine
from manyfaces.train.evaluation import evaluate
from manyfaces.train.follow import Follower, summary_table
from manyfaces.train.loop import Parts, Progress, train
from manyfaces.train.record import METRICS, NoRecord, Record, last_event, read_rows
from manyfaces.train.tracking import Mirror, tracking_uri
from manyfaces.train.watchdog import Watchdog

IDENTITY, CONFIG = "run.json", "config.yaml"
_WEIGHTS = 41  # stream of the counter
LOCK_WAIT_S = 20  # a killed group's last process may hold the lock for a moment


def folder_of(config: Config) -> Path:
    return Path(config.run.dir).absolute() / config.run.name


def run(config: Config, console: Console) -> None:
    """Check, launch, show, summarise. Raises `UserError` where the run cannot start or had to
    stop."""
    began = time.monotonic()
    config = absolute(config)
    folder = folder_of(config)
    if launch.under_torchrun() and os.environ["RANK"] != "0":
        launch.launch(work, _payload(config), config.cluster, folder, jobs.package)
        return
    dataset = open_data(config.data)
    _refuse(config, dataset)
    for own in (part.dataset for part in dataset.parts):
        size = f"{own.manifest.num_images:,} images of {own.manifest.num_identities:,} identities"
        console.print(f"{own.where}: {verify(own, config.data.verify)}; {size}")
    forgotten = read_forgotten(dataset)
    if len(forgotten.samples) or len(forgotten.identities):
        console.print(
            f"forgotten: {len(forgotten.identities):,} identities, {len(forgotten.samples):,} "
            "single samples"
        )
    for path in config.evaluation.pairs:
        read_bin(path)
    num_steps = plan.num_steps(config, dataset.manifest.num_images)
    _claim(config, dataset, folder)
    # Only what "finished" has said is complete: a kill between the last checkpoint and the last
    # evaluation leaves the latter to do.
    complete = (last_event(folder, "finished") or {}).get(
        "step", -1
    ) >= num_steps and not launch.under_torchrun()
    mirror = Mirror(folder, config, flatten(config.model_dump()))
    outcome: dict[str, Any] = {"kind": "stopped", "message": "the workers ended without a word"}
    try:
        if complete:
            console.print(f"{folder}: already complete at step {num_steps}")
        else:
            with Follower(folder, num_steps, console):
                launch.launch(work, _payload(config), config.cluster, folder, jobs.package)
        outcome = last_event(folder, "finished", "stopped") or outcome
    finally:
        evaluate.plot_curves(read_rows(folder / METRICS), folder / "plots")
        artifacts = [
            folder / CONFIG,
            folder / "plan.txt",
            folder / "evaluation.json",
            *(folder / "plots").glob("*.png"),
        ]
        if problem := mirror.close(
            "FINISHED" if outcome["kind"] == "finished" else "FAILED", artifacts
        ):
            remedy = f"{folder / METRICS} has it all, and the same command sends the rest"
            console.print(f"MLflow does not have everything: {problem}; {remedy}")
    if outcome["kind"] != "finished":
        raise UserError(outcome["message"])
    _summary(config, folder, console, began)


def work(payload: dict[str, Any]) -> None:
    """What every worker does: build, restore, loop, close. Errors that all ranks meet alike are
    written to the record, not raised."""
    config = Config.model_validate(payload["config"])
    world = World.current()
    torch.set_num_threads(config.cluster.threads_per_worker)
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    folder = folder_of(config)
    record = Record(folder) if world.rank == 0 else NoRecord()
    watchdog = Watchdog(
        config.cluster.step_timeout_s,
        lambda message: Record(folder).event("hung", message),
        world.rank,
    )
    lock = None
    try:
        lock = agree(lambda: _lock(folder) if world.rank == 0 else None)
        if config.train.batch_size < 2 * world.size:
            raise UserError(
                f"train.batch_size {config.train.batch_size}: BatchNorm needs 2 images on each of "
                f"{world.size} workers"
            )
        dataset, pairs = agree(lambda: _open(config))
        checkpointer = Checkpointer(
            folder / "checkpoints",
            config.checkpoint.keep,
            lambda step, path: record.event("checkpoint", f"checkpoint {path}", step=step),
        )
        watchdog.phase("restore")
        found = checkpointer.find(config.run.resume_from)
        total = plan.total_samples(config, dataset.manifest.num_images)
        if (
            found is not None
            and found.path.parent != folder / "checkpoints"
            and found.state["position"] >= total
        ):
            raise UserError(
                f"run.resume_from {found.path} has seen {found.state['position']:,} samples of "
                f"{total:,}; raise train.epochs"
            )
        engine, head, progress = _build(config, world, dataset, checkpointer, found)
        record.rewind(progress.step)
        record.event(
            "start", _start_line(found, world, progress), world_size=world.size, step=progress.step
        )
        state = {
            "format": 1,
            "config": config.model_dump(mode="json"),
            "dataset": dataset.manifest.fingerprint,
            "num_classes": dataset.manifest.num_identities,
            "seed": config.run.seed,
            "versions": {
                name: version(name)
                for name in ("manyfaces", "torch", "deepspeed", "nvidia-dali-cuda130")
            },
        }
        with Loader(
            dataset,
            config.data,
            seed=config.run.seed,
            batch_size=config.train.batch_size,
            rank=world.rank,
            world_size=world.size,
            position=progress.position,
            end=total,
            device=world.device,
            quarantine=Quarantine(
                folder / "quarantine.jsonl",
                dataset,
                config.data.max_bad_share,
                lambda line: Record(folder).event("quarantine", line),
            ),
            tell=lambda line: Record(folder).event("store", line),
        ) as loader:
            parts = Parts(
                config, world, engine, head, loader, pairs, checkpointer, record, watchdog, state
            )
            evaluated = train(parts, progress)
        if world.rank == 0 and evaluated:
            written = evaluate.save(evaluated, folder / "plots", progress.step)
            written[0].replace(folder / "evaluation.json")
        record.event("finished", f"finished at step {progress.step}", step=progress.step)
    except UserError as error:
        record.event("stopped", str(error))
    finally:
        watchdog.close()
        if lock is not None:
            lock.close()


def _open(config: Config) -> tuple[AnyDataset, list[Pairs]]:
    """What this node sees of the data; the launching process has looked at the bytes."""
    dataset = open_data(config.data)
    for part in dataset.parts:
        verify(part.dataset, "sizes")
    return dataset, [read_bin(path) for path in config.evaluation.pairs]


def _build(
    config: Config,
    world: World,
    dataset: AnyDataset,
    checkpointer: Checkpointer,
    found: Found | None,
) -> tuple[Engine, PartialFC, Progress]:
    """The engine, the head and where to go on, fresh or restored. A fresh start takes the same path
    with empty moments."""
    torch.manual_seed(rng.key(config.run.seed, _WEIGHTS) >> 1)
    backbone = build(config.model, config.data.image_px)
    if found is not None:
        backbone.load_state_dict(read_backbone(found.path))
    engine = Engine(backbone, config.train, config.engine, world.device, world.size)
    share = (
        world.rank + 1
    ) * config.train.batch_size // world.size - world.rank * config.train.batch_size // world.size
    px = config.data.image_px
    engine.warm_up(torch.zeros(share, px, px, 3, dtype=torch.uint8, device=world.device))
    engine.load_moments(read_optimizer(found.path) if found else None)
    head = PartialFC(
        config.head,
        dataset.manifest.num_identities,
        config.model.embedding_dim,
        seed=config.run.seed,
        weight_decay=config.train.optimizer.weight_decay,
        device=world.device,
        group=dist.group.WORLD,
        spaces=[part.first_class for part in dataset.parts]
        if config.head.label_spaces == "each"
        else (0,),
        kernels=config.engine.head_kernels == "auto",
    )
    if found is not None:
        checkpointer.load_head(found.path, head.tensors(), head.num_classes)
        if found.state["config"]["head"]["rows"]["dtype"] != config.head.rows.dtype:
            head.rounded()
        if (
            found.state["config"]["head"]["margin"]["kind"] == config.head.margin.kind
        ):  # else a new margin's numbers start afresh
            head.load_numbers(found.state.get("head", {}))
    head.forget(torch.from_numpy(read_forgotten(dataset).identities))
    if found is None:
        return engine, head, Progress()
    # Steps are counted by this run's batches: a run that was resumed from another's checkpoint may
    # have other ones.
    position = found.state["position"]
    return (
        engine,
        head,
        Progress(position // config.train.batch_size, position, found.state["seconds"]),
    )


def _start_line(found: Found | None, world: World, progress: Progress) -> str:
    workers = f"{world.size} worker{'s' if world.size > 1 else ''} on {world.device.type}"
    if found is None:
        return f"{workers}: a fresh start, as the run has no checkpoint"
    return f"{workers}: resuming {found.path.name} at sample {progress.position:,} ({found.why})"


def _payload(config: Config) -> dict[str, Any]:
    return {"name": config.run.name, "config": config.model_dump(mode="json")}


def absolute(config: Config) -> Config:
    """Workers may stand in another folder than the person did."""
    tree = config.model_dump(mode="json")
    run, data = tree["run"], tree["data"]
    for section, key in (
        (run, "dir"),
        (data, "path"),
        (data, "cache_dir"),
        (run, "resume_from"),
        *((part, "path") for part in data["mixture"]),
    ):
        value = section[key]
        if (
            value and "://" not in value and not value.startswith("~")
        ):  # each node has a home of its own
            section[key] = str(Path(value).absolute())
    if isinstance(config.head.margin, CustomMargin):
        tree["head"]["margin"]["file"] = str(Path(config.head.margin.file).absolute())
    tree["evaluation"]["pairs"] = [str(Path(p).absolute()) for p in tree["evaluation"]["pairs"]]
    return Config.model_validate(tree)


def _refuse(config: Config, dataset: AnyDataset) -> None:
    """What can be known to fail before any worker starts."""
    if config.engine.zero_stage == 3:
        raise UserError("engine.zero_stage 3 cannot be checkpointed yet; use 0, 1 or 2")
    launch.refuse(config.cluster)
    for key, wanted, has in (
        ("data.expect_images", config.data.expect_images, dataset.manifest.num_images),
        ("data.expect_identities", config.data.expect_identities, dataset.manifest.num_identities),
    ):
        if wanted is not None and wanted != has:
            raise UserError(
                f"{key} is {wanted:,}, {dataset.where} has {has:,}; give the recipe its dataset, "
                f"or set {key}={has}"
            )
    people, each = (
        config.train.batch_size // config.data.images_per_identity,
        config.data.images_per_identity,
    )
    if config.data.order == "pk" and people > dataset.manifest.num_identities:
        has = dataset.manifest.num_identities
        raise UserError(
            f"data.order pk: a batch of {people} x {each} needs {people} identities, "
            f"{dataset.where} has {has}; lower train.batch_size"
        )
    if config.train.batch_size > dataset.manifest.num_images:
        raise UserError(
            f"train.batch_size {config.train.batch_size} is more than the dataset's "
            f"{dataset.manifest.num_images} images; lower it"
        )


def _claim(config: Config, dataset: AnyDataset, folder: Path) -> None:
    """Make the run folder, or check that the one that stands is of the same experiment. Raises
    `UserError` with the differing keys."""
    mine = json.loads(
        json.dumps({**identity(config), "data.fingerprint": dataset.manifest.fingerprint})
    )
    if (folder / IDENTITY).exists():
        theirs = json.loads((folder / IDENTITY).read_text())
        keys = [k for k in sorted(mine.keys() | theirs) if mine.get(k) != theirs.get(k)]
        if keys:
            differing = "; ".join(f"{k}: {theirs.get(k)} there, {mine.get(k)} here" for k in keys)
            remedy = (
                "give another run.name (with run.resume_from to start from its checkpoint), or the "
                "old values"
            )
            raise UserError(f"{folder}: the run exists with other settings: {differing}; {remedy}")
    if config.run.resume_from is not None and not candidates(folder / "checkpoints"):
        _check_source(config, dataset, Path(config.run.resume_from))
    lines = plan.plan(
        config,
        dataset.manifest.num_images,
        dataset.manifest.num_identities,
        plan.world_size(config),
    ).lines()
    folder.mkdir(parents=True, exist_ok=True)
    _lock(
        folder, wait_s=1
    ).close()  # one that another process holds is told before anything of its run is touched
    for leftover in folder.glob(".ray-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    write_names(dataset, folder / IDENTITIES)  # each checkpoint holds a copy
    write_atomic(folder / IDENTITY, json.dumps(mine, indent=1))
    write_atomic(folder / CONFIG, dump(config))
    write_atomic(folder / "plan.txt", "".join(f"{label}: {text}\n" for label, text in lines))


_KEPT: dict[str, Callable[[Config], object]] = {
    "model": lambda config: config.model.model_dump(mode="json"),
    "train.optimizer.kind": lambda config: config.train.optimizer.kind,
    "train.optimizer.momentum": lambda config: (
        "0" if getattr(config.train.optimizer, "momentum", 1) == 0 else "above 0"
    ),
    "head.margin": lambda config: "none" if config.head.margin.kind == "none" else "of classes",
    "head.rows.optimizer": lambda config: config.head.rows.optimizer,
    "head.rows.momentum": lambda config: (
        "0" if config.head.rows.optimizer == "sgd" and config.head.rows.momentum == 0 else "above 0"
    ),
    "head.sub_centers": lambda config: config.head.sub_centers,
}
"""What decides which tensors a checkpoint has."""


def _check_source(config: Config, dataset: AnyDataset, source: Path) -> None:
    if not (source / "state.json").is_file():
        raise UserError(
            f"run.resume_from {source}: no checkpoint there; give a folder RUN/checkpoints/step-..."
        )
    state = read_state(source)
    before = Config.model_validate(state["config"])
    remedy = "`manyfaces head remap` makes a checkpoint for this dataset of it"
    if (has := state["num_classes"]) != (wanted := dataset.manifest.num_identities):
        raise UserError(
            f"run.resume_from {source}: its {has:,} identities cannot continue as {wanted:,}; "
            f"{remedy}"
        )
    if (source / IDENTITIES).is_file() and names_sha256(dataset) not in (
        None,
        file_sha256(source / IDENTITIES),
    ):
        raise UserError(
            f"run.resume_from {source}: its classes are other people than {dataset.where} has, or "
            f"in another order; {remedy}"
        )
    for key, what in _KEPT.items():
        if (here := what(config)) != (there := what(before)):
            raise UserError(
                f"run.resume_from {source}: its {key} {there} cannot continue as {here}"
            )


def _lock(folder: Path, wait_s: int = LOCK_WAIT_S) -> IO[str]:
    """Held by rank 0 while the run is written; the system lets it go with the process, however that
    ends."""
    file = (folder / ".lock").open("w")
    for _ in range(wait_s):
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        time.sleep(1)
    raise UserError(
        f"{folder}: another process is writing this run; stop it, or give another run.name"
    )


def _summary(config: Config, folder: Path, console: Console, began: float) -> None:
    console.print(summary_table(read_rows(folder / METRICS), time.monotonic() - began))
    good = next((path for path, _, fault in candidates(folder / "checkpoints") if not fault), None)
    console.print(f"checkpoint  {good}")
    console.print(f"plots       {folder / 'plots'}")
    mlflow = Path(sys.executable).with_name("mlflow")
    uri = tracking_uri(config)
    opening = f"{mlflow} ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri
    console.print(f"MLflow      {opening}")
