"""Run one worker function in every worker: through Ray Train, under torchrun, or in this process.
With `callbacks`, the files that know ray.train.

Ray places, starts and restarts the workers; it is given no checkpoint, because a run finds its
newest committed one by itself.
"""

import os
import pkgutil
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from manyfaces.cluster.autoscaler import autoscales
from manyfaces.cluster.connection import connected
from manyfaces.cluster.device import HIDE_GPUS, count_gpus
from manyfaces.cluster.group import joined
from manyfaces.cluster.memory import KEEP_MEMORY
from manyfaces.cluster.stop import current, run_in_thread
from manyfaces.configs import schema
from manyfaces.configs.launcher import under_torchrun, works_here
from manyfaces.configs.redact import redact
from manyfaces.configs.schema import Elastic, UserError
from manyfaces.configs.urls import url_of

PLACE_TIMEOUT_S = 60
"""After so long Ray tries to place the workers anew."""
PLACE_ELASTIC_TIMEOUT_S = 20
"""The same where the number of workers may change: Ray looks every 20 s how many nodes there are,
and waits for one that was just lost in vain."""
NO_PLACE = "no place for them within"
"""What is told where workers cannot be placed begins so, and says what to do."""
TRAIN_SETTINGS = {
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # Seconds until a worker's death is noticed; Ray's default is 2.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class WorkersFailedError(UserError):
    """Workers failed more often than allowed, or could not be placed; the message has the first
    failure's last line."""


@dataclass(frozen=True)
class Work:
    """What is run, and told of it. Functions are named as `MODULE:FUNCTION`, so that only those
    processes import them that call them."""

    run: str
    """Called with `payload` in every worker."""
    failed: str
    """Called with `payload`, what Ray says of each rank that failed first, and how many times
    workers have failed so far, before Ray starts them again; in a process of Ray's."""
    payload: dict[str, Any]
    logs: Path
    """The folder that has what each of Ray's workers prints, in a file a rank."""
    has_trained: Callable[[], bool]
    """Whether workers have made steps since the launch, which a stop has to save."""
    saved: Callable[[], int] = lambda: -1
    """The step of the newest checkpoint; restarts are counted anew once it is a later one."""


def launch(
    work: Work,
    config: schema.Cluster,
    scratch: Path,
    code: Callable[[], AbstractContextManager[Path]],
) -> None:
    """Run the work in all workers and wait. Ray keeps its own notes in `scratch`, a folder that
    every node sees; `code` gives the folder of the `manyfaces` package, for nodes that lack it. The
    work's payload may hold credentials: it travels where Ray's dashboard does not show it.

    Raises `UserError` for more workers than there are resources, `WorkersFailedError` after
    about `config.max_failures` restarts without a new checkpoint, and at the latest after twice as
    many and one more.
    """
    if works_here(config):
        with joined(config):
            pkgutil.resolve_name(work.run)(work.payload)
    else:
        _run_on_ray(work, config, scratch, code)


def refuse(config: schema.Cluster) -> None:
    """Raise `UserError` for the address of a dashboard, where nobody can join, and for more workers
    than this machine can hold, where it is to hold them; a cluster is asked when it is joined."""
    is_url = config.address is not None and url_of(config.address) is not None
    if is_url and not works_here(config):
        raise UserError(
            f"cluster.address {config.address}: a run joins the cluster from one of its nodes; "
            "give auto or HOST:PORT, or start it from elsewhere by `manyfaces submit`"
        )
    if works_here(config) and config.gpus_per_worker == 1 and count_gpus() == 0:
        raise UserError(
            "cluster.gpus_per_worker is 1, and torch sees no GPU here; set it to auto or 0"
        )
    if config.launcher == "ray" and config.address is None and not under_torchrun():
        gpus = count_gpus()
        _refuse_too_many(config, _workers(config, gpus), os.cpu_count() or 1, gpus, "this machine")


def _run_on_ray(
    work: Work,
    config: schema.Cluster,
    scratch: Path,
    code: Callable[[], AbstractContextManager[Path]],
) -> None:
    with (
        connected(config.address, code, _settings(config)),
        tempfile.TemporaryDirectory(
            prefix=".ray-", dir=scratch, ignore_cleanup_errors=True
        ) as storage,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # Ray's about itself
        _fit_while_saving(work, config, storage)


def _settings(config: schema.Cluster) -> dict[str, str]:
    """Environment variables for Ray."""
    is_elastic = isinstance(config.workers, Elastic)
    longest_s = PLACE_ELASTIC_TIMEOUT_S if is_elastic else PLACE_TIMEOUT_S
    place_s = min(longest_s, config.schedule_timeout_s)
    return TRAIN_SETTINGS | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(place_s)}


def _fit_while_saving(work: Work, config: schema.Cluster, storage: str) -> None:
    """Train, and once Ray has restarted the workers as often as allowed begin to count anew, where
    a checkpoint was committed in between: Ray counts over the whole run, and the longer one is the
    more workers it loses. Which of its restarts came after that checkpoint Ray does not say, so
    that the limit holds only about."""
    import ray
    import ray.exceptions
    import ray.train

    pkgutil.resolve_name("manyfaces.cluster.ray_messages:keep_first_lines")()
    # A node that was lost meanwhile is waited for: how many workers there are does not change.
    resources = ray.cluster_resources()
    starts = 0  # that were cut off since the newest checkpoint
    while True:
        saved = work.saved()
        counted = replace(work, payload=work.payload | {"saved": saved})
        trainer = _trainer(counted, config, resources, storage)
        try:
            return run_in_thread(trainer.fit, work.has_trained)
        except ray.train.TrainingFailedError as error:
            has_saved, limit = work.saved() > saved, config.max_failures
            starts = 0 if has_saved else starts + 1
            # Ray restarts what has begun to run, and ends for a worker that dies just before.
            died = isinstance(getattr(error, "controller_failure", None), ray.exceptions.RayError)
            may_start = died and (limit < 0 or starts <= limit)
            may_count = isinstance(error, ray.train.WorkerGroupError) and has_saved and limit != 0
            if current().requested or not (may_start or may_count):
                raise WorkersFailedError(_first_failure(error, limit, max(starts, 1))) from error


def resources_line(config: schema.Cluster) -> str:
    """What the workers need and what the cluster has; "" without Ray."""
    if works_here(config):
        return ""
    import ray

    try:
        has = ray.cluster_resources()
    except Exception:  # Ray has not started yet, or has lost its cluster
        return "Ray does not answer yet"
    cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
    workers = _workers(config, gpus)
    number = f"{workers[0]} to {workers[1]}" if isinstance(workers, tuple) else str(workers)
    needs = f"CPU cores each: {config.threads_per_worker}"
    if _uses_gpu(config, gpus):
        needs += ", GPUs each: 1"
    return f"{number} workers are wanted ({needs}), the cluster has {cpus} cores, {gpus} GPUs"


def _trainer(
    work: Work,
    config: schema.Cluster,
    resources: Mapping[str, float],
    storage: str,
) -> Any:
    """Ray's trainer of these workers. Raises `UserError` for more than there are resources for,
    where the cluster does not start nodes by itself."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from manyfaces.cluster import callbacks

    num_gpus = int(resources.get("GPU", 0))
    workers, uses_gpu = _workers(config, num_gpus), _uses_gpu(config, num_gpus)
    if config.address is None or not autoscales():  # else PlacementTimeout limits the wait
        _refuse_too_many(config, workers, int(resources.get("CPU", 0)), num_gpus, "the cluster")
    each: dict[str, float] = {"CPU": config.threads_per_worker}
    # Ray hides no GPU from a worker that asked for none.
    environment: dict[str, Any] | None = {"env_vars": KEEP_MEMORY | HIDE_GPUS}
    if uses_gpu:
        each["GPU"], environment = 1, None
    return TorchTrainer(
        _worker(work, config),
        torch_config=callbacks.Group(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=uses_gpu, resources_per_worker=each
        ),
        run_config=ray.train.RunConfig(
            name=f"{work.payload['name']}-{int(time.time())}",
            storage_path=storage,
            worker_runtime_env=environment,
            callbacks=[
                callbacks.Failures(work.failed, work.payload),
                callbacks.SaveBeforeResize(config.grace_s),
                callbacks.PlacementTimeout(
                    config.schedule_timeout_s, partial(resources_line, config)
                ),
            ],
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
        ),
    )


def _worker(work: Work, config: schema.Cluster) -> Callable[[], None]:
    """What a worker runs. It holds the payload itself: Ray shows what is given as
    `train_loop_config` on its dashboard."""
    run, payload, logs = work.run, work.payload, work.logs
    is_elastic, grace_s = isinstance(config.workers, Elastic), config.grace_s

    def worker() -> None:
        warnings.simplefilter("ignore")  # dependencies warn of each other
        pkgutil.resolve_name("manyfaces.cluster.callbacks:keep_output")(logs)
        watch = pkgutil.resolve_name("manyfaces.cluster.callbacks:watch_drains")
        ended = threading.Event()
        threading.Thread(target=watch, args=(is_elastic, grace_s, ended), daemon=True).start()
        try:
            pkgutil.resolve_name(run)(payload)
        except BaseException:
            # Ray passes it on, and prints it nowhere on this node.
            sys.stderr.write(redact(traceback.format_exc()))
            raise
        finally:
            ended.set()

    return worker


def _first_failure(error: Exception, max_failures: int, starts: int) -> str:
    """What ended the run, in one line; `starts` is how often Ray has tried to start workers."""
    failures = getattr(error, "worker_failures", {})
    rank, cause = next(iter(sorted(failures.items())), (None, error))
    lines = [line for line in str(cause).strip().splitlines() if line.strip()] or [repr(cause)]
    if rank is None:
        told = f"Ray could not start the workers: {lines[-1].strip()}"
        if NO_PLACE in told:  # it says what to do
            return told
        times = "once" if starts == 1 else f"{starts} times"
        return (
            f"{told.rstrip('.')}; it was tried {times} (cluster.max_failures={max_failures}); look "
            "at the nodes' free memory and Ray's logs there (/tmp/ray/session_latest/logs); the "
            "same command goes on"
        )
    return (
        f"workers failed more than cluster.max_failures={max_failures} times without a new "
        "checkpoint; the last, rank "
        f"{rank}: {lines[-1].strip()}"
    )


def _uses_gpu(config: schema.Cluster, num_gpus: int) -> bool:
    if config.gpus_per_worker == "auto":
        return num_gpus > 0
    return config.gpus_per_worker == 1


def _workers(config: schema.Cluster, num_gpus: int) -> int | tuple[int, int]:
    if isinstance(config.workers, Elastic):
        return config.workers.min, config.workers.max
    if config.workers != "auto":
        return config.workers
    if _uses_gpu(config, num_gpus):
        return max(num_gpus, 1)
    return min(2, max((os.cpu_count() or 1) // config.threads_per_worker, 1))


def _refuse_too_many(
    config: schema.Cluster, workers: int | tuple[int, int], cpus: int, gpus: int, where: str
) -> None:
    least = workers[0] if isinstance(workers, tuple) else workers
    if least * config.threads_per_worker > cpus:
        needs = (
            f"{least} workers of {config.threads_per_worker} threads need "
            f"{least * config.threads_per_worker} CPUs"
        )
        raise UserError(
            f"cluster.workers: {needs}, {where} has {cpus}; lower cluster.workers or "
            "cluster.threads_per_worker"
        )
    if _uses_gpu(config, gpus) and least > gpus:
        raise UserError(
            f"cluster.workers: {least} workers need {least} GPUs, {where} has {gpus}; lower "
            "cluster.workers"
        )
