"""Run one worker function in every worker: through Ray Train, under torchrun, or in this process.
The one file that knows ray.train.

Ray places, starts and restarts the workers; it is given no checkpoint, because a run finds its
newest committed one by itself.
"""

import contextlib
import math
import os
import pkgutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from manyfaces.cluster.device import HIDE_GPUS, count_gpus
from manyfaces.cluster.group import GROUP_TIMEOUT_S, joined
from manyfaces.cluster.memory import KEEP_MEMORY, under_torchrun, works_here
from manyfaces.configs import schema
from manyfaces.configs.redact import redact
from manyfaces.configs.schema import Elastic, UserError

START_TIMEOUT_S = 60
OBJECT_STORE_BYTES = 100 << 20  # nothing but small messages travels through Ray
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
RAY_SETTINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(START_TIMEOUT_S),
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Training is what the machine is for; Ray's default is 15.
    "RAY_worker_niceness": "0",
    # This silences a warning about a future default.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class WorkersFailedError(UserError):
    """Workers failed more often than allowed, or could not be placed; the message has the first
    failure's last line."""


def launch(
    work: str,
    payload: dict[str, Any],
    config: schema.Cluster,
    scratch: Path,
    code: Callable[[], AbstractContextManager[Path]],
) -> None:
    """Run `work(payload)` in all workers and wait; `work` names a function as `MODULE:FUNCTION`,
    which only the workers import. Ray keeps its own notes in `scratch`, a folder that every node
    sees; `code` gives the folder of the `manyfaces` package, for nodes that lack it. The payload
    may hold credentials: it travels where Ray's dashboard does not show it.

    Raises `UserError` for more workers than there are resources, `WorkersFailedError` after
    `config.max_failures` restarts.
    """
    if works_here(config):
        with joined(config):
            pkgutil.resolve_name(work)(payload)
    else:
        _run_on_ray(work, payload, config, scratch, code)


def refuse(config: schema.Cluster) -> None:
    """Raise `UserError` for more workers than this machine can hold, where it is to hold them; a
    cluster is asked when it is joined."""
    if works_here(config) and config.gpus_per_worker == 1 and count_gpus() == 0:
        raise UserError(
            "cluster.gpus_per_worker is 1, and torch sees no GPU here; set it to auto or 0"
        )
    if config.launcher == "ray" and config.address is None and not under_torchrun():
        gpus = count_gpus()
        _refuse_too_many(config, _workers(config, gpus), os.cpu_count() or 1, gpus, "this machine")


def _run_on_ray(
    work: str,
    payload: dict[str, Any],
    config: schema.Cluster,
    scratch: Path,
    code: Callable[[], AbstractContextManager[Path]],
) -> None:
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.train

    started = not ray.is_initialized()
    if started:
        if config.address is None:
            _start_ray()
        else:
            _join_cluster(config, code)
    try:
        with tempfile.TemporaryDirectory(
            prefix=".ray-", dir=scratch, ignore_cleanup_errors=True
        ) as storage:
            trainer = _trainer(work, payload, config, ray.cluster_resources(), storage)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Ray's about itself
                    trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise WorkersFailedError(_first_failure(error, config.max_failures)) from error
    finally:
        if started:
            ray.shutdown()


def _start_ray() -> None:
    """A Ray of this process's own on this machine."""
    import ray

    try:
        # The dashboard and its metrics are for clusters.
        with _redacted_command():
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **QUIET,
            )
    except Exception as error:  # what Ray raises when its daemons take too long is a bare Exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no local Ray could be started: {reason} Try again when this computer has less to do, "
            "or use cluster.launcher=process"
        ) from error


def _join_cluster(config: schema.Cluster, code: Callable[[], AbstractContextManager[Path]]) -> None:
    import ray

    try:
        # A job's workers inherit the job's code; a driver started by hand brings its own.
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            ray.init(address=config.address, **QUIET)
            return
        with code() as package, _redacted_command():
            ray.init(address=config.address, runtime_env={"py_modules": [str(package)]}, **QUIET)
    except ConnectionError as error:
        raise UserError(
            f"cluster.address {config.address}: no Ray cluster answers there; `ray start --head` "
            "starts one"
        ) from error


@contextlib.contextmanager
def _redacted_command() -> Iterator[None]:
    """Let Ray, whose dashboard shows the command line of each driver that joins, see this one's
    without credentials."""
    from ray._private import utils

    told = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: redact(told())
    try:
        yield
    finally:
        utils.get_entrypoint_name = told


def _trainer(
    work: str,
    payload: dict[str, Any],
    config: schema.Cluster,
    resources: Mapping[str, float],
    storage: str,
) -> Any:
    """Ray's trainer of these workers. Raises `UserError` for more than there are resources for."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    num_gpus = int(resources.get("GPU", 0))
    workers, uses_gpu = _workers(config, num_gpus), _uses_gpu(config, num_gpus)
    _refuse_too_many(config, workers, int(resources.get("CPU", 0)), num_gpus, "the cluster")
    each: dict[str, float] = {"CPU": config.threads_per_worker}
    # Ray hides no GPU from a worker that asked for none.
    environment: dict[str, Any] | None = {"env_vars": KEEP_MEMORY | HIDE_GPUS}
    if uses_gpu:
        each["GPU"], environment = 1, None
    # Ray counts failed placements over the whole run: each restart may wait as long as the first
    # start.
    waits = max(math.ceil(config.schedule_timeout_s / START_TIMEOUT_S), 1)
    placements = -1 if config.max_failures < 0 else waits * (config.max_failures + 1)
    return TorchTrainer(
        _silenced(work, payload),
        torch_config=TorchConfig(timeout_s=GROUP_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=uses_gpu, resources_per_worker=each
        ),
        run_config=ray.train.RunConfig(
            name=f"{payload['name']}-{int(time.time())}",
            storage_path=storage,
            worker_runtime_env=environment,
            failure_config=ray.train.FailureConfig(
                max_failures=config.max_failures, controller_failure_limit=placements
            ),
        ),
    )


def _silenced(work: str, payload: dict[str, Any]) -> Callable[[], None]:
    """What a worker runs. It holds the payload itself: Ray shows what is given as
    `train_loop_config` on its dashboard."""

    def worker() -> None:
        warnings.simplefilter("ignore")  # in a worker nobody reads them
        pkgutil.resolve_name(work)(payload)

    return worker


def _first_failure(error: Exception, max_failures: int) -> str:
    failures = getattr(error, "worker_failures", {})
    rank, cause = next(iter(sorted(failures.items())), (None, error))
    lines = [line for line in str(cause).strip().splitlines() if line.strip()] or [repr(cause)]
    if rank is None:
        return f"Ray could not start the workers: {lines[-1].strip()}"
    return (
        f"workers failed more than cluster.max_failures={max_failures} times; the last, rank "
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
