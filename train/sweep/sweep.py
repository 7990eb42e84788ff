"""A sweep: what it will run, checked before anything starts, then its trials, then what came of
them."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import ceil
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from manyfaces.cluster import sweep as tuning
from manyfaces.cluster.jobs import package
from manyfaces.cluster.stop import StoppedError, current
from manyfaces.cluster.sweep import EarlyStop, Sweep
from manyfaces.configs import paths, plan
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.schema import Config
from manyfaces.configs.urls import url_of
from manyfaces.data.dataset.size import dataset_size
from manyfaces.train.evaluation.result import metric as metric_name
from manyfaces.train.folder import RunFolder
from manyfaces.train.lease import LeaseHeldError, refuse_held
from manyfaces.train.protocols.open import open_protocols
from manyfaces.train.sweep.grid import Axis, Trial, axes_of, trials_of
from manyfaces.train.sweep.trial import MORE_S

FOLLOWER = "manyfaces.train.sweep.trial:TrialProcess"
LOSS = "train/loss"
STATE = "sweep.json"
REDUCTION = 3.0
FIRST_RUNG = 9.0
"""The first rung of a sweep is at this part of its epochs: two rungs before the end."""
Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Asked:
    """What a person has asked for."""

    recipe: str
    words: tuple[str, ...]
    metric: str
    mode: Mode
    concurrent: int | None
    grace_epochs: float | None
    """Epochs before which no trial is stopped; None for a part of all."""
    stops_early: bool
    address: str | None


@dataclass(frozen=True)
class Planned:
    """A sweep that can start."""

    asked: Asked
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    num_steps: tuple[int, ...]
    """How many steps each trial makes."""
    early_stop: EarlyStop | None
    folder: Path
    """Where the sweep keeps its own files."""
    fallen_behind: tuple[str, ...]
    """Names of the trials that were stopped early, in this sweep or before it went on."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Why trials have failed, by name."""


def planned(asked: Asked, tell: Callable[[str], None]) -> Planned:
    """The sweep; `tell` gets lines worth knowing. Raises `UserError` for every mistake that can be
    known before a trial starts."""
    axes, plain = axes_of(asked.words)
    trials = trials_of(asked.recipe, axes, plain, tell)
    trials = [replace(trial, config=paths.absolute(trial.config)) for trial in trials]
    first = trials[0].config
    if url_of(first.run.dir) is not None:
        raise UserError(f"run.dir {first.run.dir}: a sweep compares runs in a folder; give one")
    address = asked.address or first.cluster.address
    if address is not None and url_of(address) is not None:
        raise UserError(
            f"--address {address}: a sweep joins the cluster from one of its nodes; give auto or "
            "HOST:PORT"
        )
    _refuse_unknown_metric(asked.metric, trials)
    sizes = [_num_steps(trial.config) for trial in trials]
    if asked.stops_early:
        trials = _with_evaluations(asked, trials, tell)
    name = first.run.name
    folder = Path(first.run.dir) / f"{name.rpartition('-')[0]}-sweep"
    early_stop = _early_stop(asked, trials) if asked.stops_early else None
    return Planned(
        replace(asked, address=address),
        tuple(axes),
        tuple(trials),
        tuple(sizes),
        early_stop,
        folder,
        _known_stops(folder, asked, axes),
    )


def run_sweep(what: Planned, console: Console) -> Planned:
    """Run all trials that are not done; the same sweep with the trials that were stopped early or
    have failed. Raises `StoppedError` where this process was asked to stop."""
    what.folder.mkdir(parents=True, exist_ok=True)
    behind, faults = list(what.fallen_behind), dict[str, str]()
    _keep(what, behind)
    steps = dict(zip((trial.name for trial in what.trials), what.num_steps, strict=True))

    def ended(name: str, told: dict[str, Any]) -> None:
        if not told.get("ended") and name not in behind:
            behind.append(name)
            _keep(what, behind)
        epochs = f" at epoch {told['epoch']:.3g}" if "epoch" in told else ""
        outcome = "finished"
        if fault := told.get("fault"):
            faults[name] = fault
            outcome = f"failed: {fault}"
        elif name in behind:
            outcome = f"stopped early{epochs}"
        console.print(f"{name}: {outcome}")

    payloads = {
        trial.name: {
            "config": trial.config.model_dump(mode="json"),
            "num_steps": steps[trial.name],
            "epochs": trial.config.train.epochs,
            "metric": what.asked.metric,
            "log": str(what.folder / f"{trial.name}.log"),
            "is_stopped": trial.name in behind,
        }
        for trial in what.trials
    }
    tuning.sweep(_tuned(what, payloads), what.asked.address, package, what.folder, ended)
    if (reason := current().reason) is not None:
        _wait_for_runs(what.trials)
        raise StoppedError(f"stopped by {reason}; the same command goes on with the sweep")
    return replace(what, fallen_behind=tuple(behind), faults=faults)


def _tuned(what: Planned, payloads: dict[str, dict[str, Any]]) -> Sweep:
    """What Tune is to do. A trial of one worker trains in one process; the workers of others are
    placed by Ray, in what the trials leave of the cluster."""
    config, concurrent = what.trials[0].config, what.asked.concurrent
    is_alone = plan.world_size(config) == 1
    resources = {"CPU": 0.0}
    if is_alone:
        resources = {"CPU": float(config.cluster.threads_per_worker)}
        if plan.has_gpus(config):
            resources["GPU"] = 1.0
        for payload in payloads.values():
            payload["config"]["cluster"] |= {"launcher": "process", "address": None}
    return Sweep(
        follower=FOLLOWER,
        payloads=payloads,
        metric=what.asked.metric,
        mode=what.asked.mode,
        early_stop=what.early_stop,
        concurrent=concurrent if concurrent is not None or is_alone else 1,
        resources=resources,
    )


def _refuse_unknown_metric(metric: str, trials: Sequence[Trial]) -> None:
    """Raise `UserError` for a metric that a trial will not record."""
    known: dict[str, list[str]] = {}
    for trial in trials:
        evaluation = trial.config.evaluation
        key = evaluation.model_dump_json()
        if key not in known:
            protocols = open_protocols(trial.config)
            known[key] = [
                metric_name(protocol.name, each)
                for protocol in protocols
                for each in protocol.quantities
            ]
        if metric == LOSS or metric in known[key]:
            continue
        names = [*known[key], LOSS]
        near = get_close_matches(metric, names, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        lacks = "" if known[key] else "; evaluation.pairs and evaluation.protocols name none"
        raise UserError(
            f"--metric {metric}: {trial.name} will not record it; {meant}the metrics are "
            f"{', '.join(names)}{lacks}"
        )


def _num_steps(config: Config) -> int:
    return plan.num_steps(config, dataset_size(config.data)[0])


def _with_evaluations(
    asked: Asked, trials: Sequence[Trial], tell: Callable[[str], None]
) -> list[Trial]:
    """The same trials, evaluated each epoch where they would be at the end only."""
    found, changed = [], dict[str, None]()
    for trial in trials:
        config = trial.config
        if asked.metric != LOSS and config.evaluation.every_steps == 0:
            steps = ceil(dataset_size(config.data)[0] / config.train.batch_size)
            evaluation = config.evaluation.model_copy(update={"every_steps": steps})
            config = config.model_copy(update={"evaluation": evaluation})
            changed[str(steps)] = None
        found.append(replace(trial, config=config))
    if changed:
        tell(
            f"evaluation.every_steps={' or '.join(changed)}, an epoch: trials are compared while "
            "they train; --no-early-stop evaluates at the end only"
        )
    return found


def _early_stop(asked: Asked, trials: Sequence[Trial]) -> EarlyStop:
    epochs = max(trial.config.train.epochs for trial in trials)
    grace = asked.grace_epochs
    if grace is None:
        grace = epochs / FIRST_RUNG
    if grace > epochs:
        raise UserError(
            f"--grace-epochs {grace:g} is more than train.epochs {epochs:g}; lower it, or give "
            "--no-early-stop"
        )
    return EarlyStop(epochs, grace, REDUCTION)


def _known_stops(folder: Path, asked: Asked, axes: Sequence[Axis]) -> tuple[str, ...]:
    """The trials that this sweep has stopped early before. Raises `UserError` where another sweep
    has its name."""
    file = folder / STATE
    if not file.exists():
        return ()
    try:
        known = json.loads(file.read_text())
        there, stopped = known["axes"], tuple(known["fallen_behind"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is not what a sweep has written; move it away") from error
    here = {axis.key: list(axis.values) for axis in axes}
    if there != here or list(there) != list(here):
        told = " ".join(f"{key}=[{', '.join(values)}]" for key, values in there.items())
        raise UserError(
            f"{folder}: was a sweep of {told}; give this one another run.name, or the same axes"
        )
    return stopped if (known["metric"], known["mode"]) == (asked.metric, asked.mode) else ()


def _keep(what: Planned, behind: Sequence[str]) -> None:
    state = {
        "axes": {axis.key: list(axis.values) for axis in what.axes},
        "metric": what.asked.metric,
        "mode": what.asked.mode,
        "fallen_behind": list(behind),
    }
    write_atomic(what.folder / STATE, json.dumps(state, indent=1) + "\n")


def _wait_for_runs(trials: Sequence[Trial]) -> None:
    """Wait until no trial is being written any more, as long as one may take to save."""
    for trial in trials:
        folder = RunFolder.of(trial.config).path
        deadline = time.monotonic() + trial.config.cluster.grace_s + MORE_S
        while folder.exists() and time.monotonic() < deadline:
            try:
                refuse_held(folder)
            except LeaseHeldError:
                time.sleep(0.5)
            else:
                break
