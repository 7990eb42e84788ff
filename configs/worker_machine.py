"""What the workers of a run have: the stated machine, or what this computer has for each."""

import os
from dataclasses import replace

from manyfaces.configs import machines, this_machine
from manyfaces.configs.amounts import size
from manyfaces.configs.launcher import under_torchrun, works_here
from manyfaces.configs.machines import Machine
from manyfaces.configs.plan import has_gpus, world_size
from manyfaces.configs.precision import precision
from manyfaces.configs.schema import Config
from manyfaces.configs.worker_memory import BESIDE_WORKERS


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
    known = config.cluster.address is None
    return machines.cpu(threads, share, told, known=known, shares_memory=True)


def workers_here(config: Config) -> int:
    """Workers on this computer, where they are all here or no cluster is known."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else world_size(config)


def beside_workers(config: Config) -> int:
    """Memory of what runs on this computer beside the workers."""
    return 0 if works_here(config.cluster) else BESIDE_WORKERS


def _with_gpu(config: Config, memory_bytes: float | None) -> Machine:
    stated = config.cluster.machine
    numbers = precision(config.train, is_gpu=True)
    here = this_machine.gpus() if config.cluster.address is None and stated is None else None
    card = stated or (here.card if here else None) or machines.DEFAULT_CARD
    if memory_bytes is not None:
        own = machines.gpu(card, numbers, memory_bytes, "as --memory-gb says", known=True)
    elif here is not None:
        told = f"a {here.name} has it"
        own = machines.gpu(card, numbers, here.memory_bytes, told, known=True)
    else:
        own = machines.gpu(card, numbers, known=stated is not None)
    if here is None or here.card is not None:
        return own
    rates = f"of a {here.name} no rates are known, so those of another GPU are taken: {own.assumed}"
    return replace(own, name=here.name, assumed=rates)
