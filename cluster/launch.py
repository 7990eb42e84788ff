"""Run one worker function in every worker: through Ray Train, under torchrun, or in this process. The one file that knows ray.train.

Ray places, starts and restarts the workers; it is given no checkpoint, because a run finds its newest committed one by itself.
"""

import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from manyfaces.configs import schema
from manyfaces.configs.schema import Elastic, UserError

Work = Callable[[dict[str, Any]], None]
GROUP_TIMEOUT_S = 1800
START_TIMEOUT_S = 60
OBJECT_STORE_BYTES = 100 << 20  # nothing but small messages travels through Ray


class WorkersFailedError(RuntimeError):
    """Workers failed more often than allowed; the message is the first failure's last line."""


def launch(work: Work, payload: dict[str, Any], config: schema.Cluster, scratch: Path, code: Callable[[], Path]) -> None:
    """Run `work(payload)` in all workers and wait. Ray keeps its own notes in `scratch`, a folder that every node sees; `code` gives the
    folder of the `manyfaces` package, for nodes that lack it.

    Raises `UserError` for more workers than there are resources, `WorkersFailedError` after `config.max_failures` restarts.
    """
    if config.launcher == "process" or under_torchrun():
        _run_here(work, payload)
    else:
        _run_on_ray(work, payload, config, scratch, code)


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _run_here(work: Work, payload: dict[str, Any]) -> None:
    timeout = timedelta(seconds=GROUP_TIMEOUT_S)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if under_torchrun():
        dist.init_process_group(backend, timeout=timeout)
    else:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")  # DeepSpeed asks for them
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        work(payload)
    finally:
        dist.destroy_process_group()


def _run_on_ray(work: Work, payload: dict[str, Any], config: schema.Cluster, scratch: Path, code: Callable[[], Path]) -> None:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # training is what the machine is for; Ray's default is 15
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a future default
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    started = not ray.is_initialized()
    if started:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if config.address is None:
            wanted = _workers(config, torch.cuda.device_count())
            _refuse_too_many(config, wanted, os.cpu_count() or 1, torch.cuda.device_count(), "this machine")
            # The dashboard and its metrics are for clusters.
            ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        else:
            # A job's workers inherit the job's code; a driver started by hand brings its own.
            environment = None if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else {"py_modules": [str(code())]}
            try:
                ray.init(address=config.address, runtime_env=environment, **quiet)
            except ConnectionError as error:
                raise UserError(f"cluster.address {config.address}: no Ray cluster answers there; `ray start --head` starts one") from error
    try:
        resources = ray.cluster_resources()
        num_gpus = int(resources.get("GPU", 0))
        workers = _workers(config, num_gpus)
        _refuse_too_many(config, workers, int(resources.get("CPU", 0)), num_gpus, "the cluster")
        with tempfile.TemporaryDirectory(prefix=".ray-", dir=scratch, ignore_cleanup_errors=True) as storage:
            trainer = TorchTrainer(
                _silenced(work),
                train_loop_config=payload,
                torch_config=TorchConfig(timeout_s=GROUP_TIMEOUT_S),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers,
                    use_gpu=_uses_gpu(config, num_gpus),
                    resources_per_worker={"CPU": config.threads_per_worker} | ({"GPU": 1} if _uses_gpu(config, num_gpus) else {}),
                ),
                run_config=ray.train.RunConfig(
                    name=f"{payload['name']}-{int(time.time())}",
                    storage_path=storage,
                    failure_config=ray.train.FailureConfig(
                        max_failures=config.max_failures,
                        controller_failure_limit=max(math.ceil(config.schedule_timeout_s / START_TIMEOUT_S), 1),
                    ),
                ),
            )
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Ray's about itself
                    trainer.fit()
            except ray.train.TrainingFailedError as error:
                raise WorkersFailedError(_first_failure(error)) from error
    finally:
        if started:
            ray.shutdown()


def _silenced(work: Work) -> Work:
    def worker(payload: dict[str, Any]) -> None:
        warnings.simplefilter("ignore")  # in a worker nobody reads them
        work(payload)

    return worker


def _first_failure(error: Exception) -> str:
    failures = getattr(error, "worker_failures", {})
    rank, cause = next(iter(sorted(failures.items())), (None, error))
    lines = [line for line in str(cause).strip().splitlines() if line.strip()] or [repr(cause)]
    return f"rank {rank}: {lines[-1].strip()}" if rank is not None else lines[-1].strip()


def _uses_gpu(config: schema.Cluster, num_gpus: int) -> bool:
    return num_gpus > 0 if config.gpus_per_worker == "auto" else config.gpus_per_worker == 1


def _workers(config: schema.Cluster, num_gpus: int) -> int | tuple[int, int]:
    if isinstance(config.workers, Elastic):
        return config.workers.min, config.workers.max
    if config.workers == "auto":
        return num_gpus if _uses_gpu(config, num_gpus) else min(2, max((os.cpu_count() or 1) // config.threads_per_worker, 1))
    return config.workers


def _refuse_too_many(config: schema.Cluster, workers: int | tuple[int, int], cpus: int, gpus: int, where: str) -> None:
    least = workers[0] if isinstance(workers, tuple) else workers
    if least * config.threads_per_worker > cpus:
        needs = f"{least} workers of {config.threads_per_worker} threads need {least * config.threads_per_worker} CPUs"
        raise UserError(f"cluster.workers: {needs}, {where} has {cpus}; lower cluster.workers or cluster.threads_per_worker")
    if _uses_gpu(config, gpus) and least > gpus:
        raise UserError(f"cluster.workers: {least} workers need {least} GPUs, {where} has {gpus}; lower cluster.workers")
