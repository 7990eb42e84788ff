"""What the workers of a run have: the stated machine, or what this computer has for each."""

import os

from manyfaces.configs import machines, this_machine
from manyfaces.configs.amounts import size
from manyfaces.configs.machines import Machine
from manyfaces.configs.plan import has_gpus, world_size
from manyfaces.configs.schema import Config
from manyfaces.configs.worker_memory import BESIDE_WORKERS, TORCHRUN, uses_ray


def machine(config: Config, memory_gb: float | None = None) -> Machine:
    """The machine of a worker, with a memory of so many 10^9 bytes where that is given."""
    memory_bytes = None if memory_gb is None else memory_gb * 1e9
    if has_gpus(config):
        return _with_gpu(config, memory_bytes)
    threads = config.cluster.threads_per_worker
    if memory_bytes is not None:
        return machines.cpu(threads, memory_bytes, "as --memory-gb says", known=True)
    whole, where = this_machine.memory_bytes()
    workers, beside = workers_here(config), beside_workers(config)
    share = max(whole - beside, 0) / workers
    told = f"{where} has {size(whole)}"
    if beside:
        told += f", less {size(beside)} for Ray and the process that starts it"
    if workers > 1:
        told += f", for {workers} workers"
    return machines.cpu(threads, share, told, known=config.cluster.address is None)


def workers_here(config: Config) -> int:
    """Workers on this computer, where they are all here or no cluster is known."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if TORCHRUN in os.environ else world_size(config)


def beside_workers(config: Config) -> int:
    """Memory of what runs on this computer beside the workers."""
    return BESIDE_WORKERS if uses_ray(config) else 0


def _with_gpu(config: Config, memory_bytes: float | None) -> Machine:
    precision, stated = config.train.precision, config.cluster.machine
    here = this_machine.gpus() if config.cluster.address is None and stated is None else None
    card = stated or (here.card if here else None) or machines.DEFAULT_CARD
    if memory_bytes is not None:
        return machines.gpu(card, precision, memory_bytes, "as --memory-gb says", known=True)
    if here is not None:
        return machines.gpu(card, precision, here.memory_bytes, f"a {here.name} has it", known=True)
    return machines.gpu(card, precision, known=stated is not None)
