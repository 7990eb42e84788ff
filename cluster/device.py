"""On which device a worker computes. The one place that asks torch for GPUs: the process group,
DeepSpeed and the run have to use the same."""

import os

import torch

from manyfaces.configs.errors import UserError

HIDE_GPUS = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of a worker that is to use none."""


def count_gpus() -> int:
    """GPUs that this process may use.

    CUDA looks at the environment once: where GPUs are hidden from a process that has asked for them
    before, torch goes on to call CUDA available.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return 0
    return torch.cuda.device_count()


def worker_device() -> torch.device:
    """The device of this worker: the GPU of its `LOCAL_RANK`, or the only one that it is shown,
    whatever its number on the machine; the CPU without GPUs. Raises `UserError` for more workers
    than GPUs."""
    gpus, local_rank = count_gpus(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus == 0:
        return torch.device("cpu")
    if gpus == 1:
        return torch.device("cuda", 0)
    if local_rank >= gpus:
        raise UserError(
            f"worker {local_rank} of this machine (LOCAL_RANK, from 0) sees {gpus} GPUs: start one "
            "worker for each GPU, or show each worker one by CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", local_rank)
