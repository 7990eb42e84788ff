"""What a worker's process takes in memory besides what is trained and kept for the backward pass.

The figures of CPU workers are measured: `tests/bench/bench_memory.py` prints them beside those of
real workers, and `tests/e2e/test_worker_memory.py` holds the plan to them. The figures of GPUs are
stated, not measured.
"""

from dataclasses import dataclass

from manyfaces.configs.launcher import works_here
from manyfaces.configs.network_cost import NetworkCost
from manyfaces.configs.schema import Config

MIB = 1 << 20
LIBRARIES = 300 * MIB
"""Anonymous memory of a CPU worker that has no network yet: 214 MiB once Python, torch, DeepSpeed,
DALI and Arrow are imported, 77 more once torch's compiler and its like have come with the first
optimiser, and the threads' stacks. Pages of files, about 300 MiB of libraries that all workers
share, are the page cache's and not counted."""
KERNELS = 100 * MIB
"""What oneDNN keeps from the first step on: generated code and scratch memory, 75 to 155 MiB by the
number of different layers."""
RAY_WORKER = 60 * MIB
"""What Ray's part of a worker adds."""
BESIDE_WORKERS = 2000 * MIB
"""What a local run has beside its workers: the process that a person started, Ray's daemons, the
controller of its workers and those that Ray keeps ready. 2,017 MiB were measured on two cores; Ray
keeps more ready where there are more cores, which is not counted."""
GPU_LIBRARIES = 1536 * MIB
"""Memory of a GPU that CUDA's context, the kernels, the workspaces of cuBLAS and cuDNN and the
buffers of NCCL take. Stated, not measured."""
GPU_HOST = 4096 * MIB
"""Host memory of a GPU worker with its libraries. Stated, not measured."""
HEAP_SHARE = 0.75
"""What the heap of a CPU worker holds between blocks that are in use, as a share of the
activations. Workers give nothing back to the kernel (`cluster/memory.py`), and glibc 2.36 looks for
an aligned block only in holes that are larger than it by the alignment: what one tensor leaves does
not take the next one of its size, unless its neighbours are free too. Measured after 7 to 30 steps:
0.7 to 0.9 for convolutional networks, 0.5 to 0.65 for transformers; about 0 where blocks go back to
the kernel at once."""
_BATCHES = 4
"""Batches that are decoded or trained on, beside those that wait: the one of the step and the one
that was asked for behind it, one that is decoded and one that is collected."""


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of one worker."""

    process: int
    """Its libraries and kernels, beside all that is built and trained."""
    input: int
    """Batches that are decoded ahead."""
    heap: int
    """What the heap of a CPU worker holds between blocks that are in use; 0 with a GPU."""
    host: int
    """What the process of a worker with a GPU takes of the host's memory; 0 without a GPU."""


def worker_memory(
    config: Config, network: NetworkCost, upload_bytes: int, *, is_gpu: bool
) -> WorkerMemory:
    """What a worker takes besides the network and the objective, where the images of one batch are
    `upload_bytes`."""
    images = (config.data.prefetch_batches + _BATCHES) * upload_bytes
    if is_gpu:
        return WorkerMemory(process=GPU_LIBRARIES, input=images, heap=0, host=GPU_HOST)
    return WorkerMemory(
        process=LIBRARIES + KERNELS + (0 if works_here(config.cluster) else RAY_WORKER),
        input=images,
        heap=round(HEAP_SHARE * network.activation_bytes),
        host=0,
    )
