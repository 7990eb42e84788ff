"""Several runs side by side, compared while they train, so that those that fall behind end early:
Ray Tune. The one file that knows ray.tune."""

import pkgutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manyfaces.cluster.connection import Code, connected
from manyfaces.cluster.stop import current, run_in_thread

TUNE_SETTINGS = {
    # Trials that have no value yet tell so all the time, so that a stop need not wait for one.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # The runs keep their own record, and what a trial fails with is told in a line.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class EarlyStop:
    """Asynchronous successive halving (ASHA, arXiv 1810.05934)."""

    max_epochs: float
    """What the longest trial trains."""
    grace_epochs: float
    """No trial ends before; here is the first rung."""
    reduction: float
    """Each rung is so many times further than the one before, and of the trials that have come to
    it one in so many goes on."""


@dataclass(frozen=True)
class Sweep:
    """What is compared."""

    follower: str
    """Class `MODULE:CLASS` that is made of a trial's payload and follows it: `poll()` returns soon,
    with values by name and `epoch`, and at the end with `done`, `ended` and the `fault`;
    `stop()` ends it."""
    payloads: Mapping[str, dict[str, Any]]
    """By the trials' names. They may hold credentials: they travel where Ray's dashboard does not
    show them, with `address`, the Ray cluster to which the follower belongs."""
    metric: str
    mode: Literal["max", "min"]
    early_stop: EarlyStop | None
    concurrent: int | None
    """Trials at a time; None for as many as there are resources for."""
    resources: Mapping[str, float]
    """What a trial takes of Ray."""


Ended = Callable[[str, dict[str, Any]], None]
"""Told of each trial that has ended, and the last that its follower has said; where that has no
`ended`, it was stopped because it had fallen behind. (Tune sets `done` in either case.)"""


def sweep(what: Sweep, address: str | None, code: Code, scratch: Path, ended: Ended) -> None:
    """Run all trials on the cluster at `address`, without one on a Ray of this machine, until they
    have ended or this process is asked to stop. Ray keeps its notes in `scratch`, a folder that
    every node sees. Raises `UserError` where no cluster answers."""
    with (
        connected(address, code, TUNE_SETTINGS),
        tempfile.TemporaryDirectory(
            prefix=".ray-", dir=scratch, ignore_cleanup_errors=True
        ) as storage,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # Ray's about itself
        tuner = _tuner(what, storage, ended)
        try:
            run_in_thread(tuner.fit, saves=lambda: True)
        except Exception:
            if not current().requested:
                raise


def _tuner(what: Sweep, storage: str, ended: Ended) -> Any:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    names = list(what.payloads)
    scheduler, asha = None, what.early_stop
    if asha is not None:
        scheduler = ASHAScheduler(
            time_attr="epoch",
            max_t=asha.max_epochs,
            grace_period=asha.grace_epochs,
            reduction_factor=asha.reduction,
            # Else a value that is told twice counts at lower rungs too, and one at the end stops a
            # trial that has finished.
            stop_last_trials=False,
        )
    address = ray.get_runtime_context().gcs_address
    return tune.Tuner(
        tune.with_resources(_trainable(what, address), dict(what.resources)),
        param_space={"trial": tune.grid_search(names)},
        tune_config=tune.TuneConfig(
            metric=what.metric,
            mode=what.mode,
            scheduler=scheduler,
            max_concurrent_trials=what.concurrent,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=storage,
            stop=_stopper(),
            callbacks=[_callback(ended)],
            # Runs save their own checkpoints.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _trainable(what: Sweep, address: str) -> type:
    """What Tune starts for a trial. It holds the payloads itself: Tune writes down what it is given
    as parameters."""
    from ray import tune

    follower, payloads = what.follower, dict(what.payloads)

    class Trial(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            payload = payloads[config["trial"]] | {"address": address}
            self.follower = pkgutil.resolve_name(follower)(payload)

        def step(self) -> dict[str, Any]:
            told: dict[str, Any] = self.follower.poll()
            return told

        def cleanup(self) -> None:
            self.follower.stop()

    return Trial


def _stopper() -> Any:
    """Ends the whole sweep once this process is asked to."""
    from ray import tune

    class Asked(tune.Stopper):  # type: ignore[misc]
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return current().requested

    return Asked()


def _callback(ended: Ended) -> Any:
    """Tells of each trial that has ended."""
    from ray import tune

    class Ends(tune.Callback):  # type: ignore[misc]
        def __init__(self, ended: Ended) -> None:
            self.ended = ended

        def __getstate__(self) -> dict[str, Any]:
            # Tune keeps copies to restore a sweep by, which goes on by its runs' records instead.
            return {}

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            if not current().requested:
                self.ended(trial.config["trial"], dict(trial.last_result or {}))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            lost = "its process in Ray was lost; see /tmp/ray/session_latest/logs there"
            self.ended(trial.config["trial"], {"ended": True, "fault": lost})

    return Ends(ended)
