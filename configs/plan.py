"""The arithmetic of a run before anything runs, without torch: parameters, memory of a worker,
bytes and operations of a step, steps, disk.

Bytes are estimates from the formulas of `network_cost.py`, `worker_memory.py` and of the
objectives. On CPUs they are held against real workers; on GPUs they are not measured.
"""

import os
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod

from manyfaces.configs import this_machine
from manyfaces.configs.launcher import under_torchrun
from manyfaces.configs.machines import WORKERS_PER_NODE
from manyfaces.configs.network_cost import NetworkCost, network_cost
from manyfaces.configs.objectives.objective import ObjectiveCost, Sizes
from manyfaces.configs.schema import Config, Elastic, UserError
from manyfaces.configs.worker_memory import WorkerMemory, worker_memory

JPEG_BYTES = 5000
"""Bytes of a 112 px face at JPEG quality 95; our development faces have 4,163 on average."""


def world_size(config: Config) -> int:
    """Workers to plan for: those of torchrun; the most that an elastic run may have; `auto` as this
    machine's devices and cores have it, or as a node of the stated machine has."""
    workers = config.cluster.workers
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    if isinstance(workers, Elastic):
        return workers.max
    if workers != "auto":
        return workers
    if config.cluster.launcher == "process":
        return 1
    gpus = 0 if config.cluster.gpus_per_worker == 0 else this_machine.num_gpus()
    if not gpus and config.cluster.machine is not None:
        return WORKERS_PER_NODE
    return gpus or min(2, max((os.cpu_count() or 1) // config.cluster.threads_per_worker, 1))


def num_steps(config: Config, num_images: int) -> int:
    """`train.epochs` passes, rounded up to whole steps; counted in decimals, so that 0.1 epochs are
    a tenth."""
    return ceil(Fraction(str(config.train.epochs)) * num_images / config.train.batch_size)


def total_samples(config: Config, num_images: int) -> int:
    """Samples of all steps: where the schedule ends."""
    return num_steps(config, num_images) * config.train.batch_size


def warmup_samples(config: Config, num_images: int) -> int:
    """Samples until the learning rate is whole."""
    return round(Fraction(str(config.train.warmup_epochs)) * num_images)


@dataclass(frozen=True)
class Plan:
    """What a run will do and cost. Memory and bytes sent are those of the fullest worker."""

    num_images: int
    num_identities: int
    world_size: int
    images_per_worker: int
    """Images of a step on one worker; where the batch does not divide, the largest share."""
    epochs: float
    batch_size: int
    num_steps: int
    num_samples: int
    warmup_samples: int

    network: NetworkCost
    memory: WorkerMemory
    """What a worker takes besides the network and the objective."""
    objective: ObjectiveCost
    """What the fullest worker spends on the objective."""
    whole_objective: ObjectiveCost
    """What all workers together spend on the objective."""
    has_head: bool
    """Whether the objective has class centres."""

    read_bytes: int
    """Bytes read in a step, over all workers."""
    upload_bytes: int
    """Bytes of images that go to a worker's device in a step."""
    kept_checkpoints: int
    has_gpus: bool
    """Whether workers have GPUs; else all memory is the host's."""
    copies_state: bool
    """Whether checkpoints are written from a copy of the state in host memory."""

    @property
    def memory_bytes(self) -> int:
        """Memory of one worker's device, all together: on a CPU, the memory of its process but for
        pages of files."""
        network = self.network
        passing = max(
            network.gathered_bytes
            + network.activation_bytes
            + self.memory.heap
            + self.objective.workspace_bytes,
            network.step_bytes,
        )
        lasting = network.state_bytes + self.objective.device_bytes
        lasting += self.memory.process + self.memory.input
        return lasting + passing + (0 if self.has_gpus else self.snapshot_bytes(self.objective))

    @property
    def host_bytes(self) -> int:
        """Memory of the host that a worker with a GPU takes; 0 of one without, whose memory is all
        the host's."""
        if not self.has_gpus:
            return 0
        return self.memory.host + self.objective.host_bytes + self.snapshot_bytes(self.objective)

    def snapshot_bytes(self, objective: ObjectiveCost) -> int:
        """Host memory that checkpoints are written from: a copy of what the first worker, which
        writes the network too, puts into one, with this share of the objective."""
        state = self.network.checkpoint_bytes + objective.state_bytes
        return state if self.copies_state else 0

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of one checkpoint."""
        return self.network.checkpoint_bytes + self.whole_objective.state_bytes


def plan(config: Config, num_images: int, num_identities: int, world_size: int) -> Plan:
    """The plan of a run on this dataset and this many workers. Raises `UserError` for what cannot
    run at all."""
    batch, num_pixels = config.train.batch_size, prod(config.data.image_hw)
    if num_images < 1 or num_identities < 1:
        raise UserError(f"{num_images} images of {num_identities} identities: nothing to train on")
    if batch < world_size:
        raise UserError(
            f"train.batch_size {batch} is below {world_size} workers, and each needs an image; "
            "raise it or lower cluster.workers"
        )
    share, is_gpu = ceil(batch / world_size), has_gpus(config)
    network = network_cost(config, world_size, is_gpu=is_gpu)
    upload_bytes = share * 3 * num_pixels  # uint8: normalisation belongs to the device
    return Plan(
        num_images=num_images,
        num_identities=num_identities,
        world_size=world_size,
        images_per_worker=share,
        epochs=config.train.epochs,
        batch_size=batch,
        num_steps=num_steps(config, num_images),
        num_samples=total_samples(config, num_images),
        warmup_samples=warmup_samples(config, num_images),
        network=network,
        memory=worker_memory(config, network, upload_bytes, is_gpu=is_gpu),
        objective=_objective_cost(config, num_identities, world_size),
        whole_objective=_objective_cost(config, num_identities, 1),
        has_head=config.has_head,
        read_bytes=batch * JPEG_BYTES * num_pixels // 112**2,
        upload_bytes=upload_bytes,
        kept_checkpoints=config.checkpoint.keep,
        has_gpus=is_gpu,
        copies_state=config.checkpoint.background,
    )


def _objective_cost(config: Config, num_identities: int, world_size: int) -> ObjectiveCost:
    dim, batch = config.model.embedding_dim, config.train.batch_size
    sizes = Sizes(num_identities, dim, batch, world_size, has_gpus(config))
    return config.objective.cost(config, sizes)


def has_gpus(config: Config) -> bool:
    """Whether workers have GPUs, as far as one can tell without asking: where that is `auto`, if
    this computer has one, or has too few cores for them."""
    few = world_size(config) * config.cluster.threads_per_worker <= (os.cpu_count() or 1)
    gpus = config.cluster.gpus_per_worker
    if gpus == "auto" and config.cluster.machine is not None:
        return True
    return gpus == 1 or (gpus == "auto" and (this_machine.num_gpus() > 0 or not few))
