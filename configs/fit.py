"""Whether a run fits the memory of its workers, and what would make it fit."""

import os
from collections.abc import Iterator
from typing import Any

from manyfaces.configs import this_machine
from manyfaces.configs.amounts import size
from manyfaces.configs.machines import Machine
from manyfaces.configs.plan import Plan, has_gpus, plan, world_size
from manyfaces.configs.plan_lines import Lines
from manyfaces.configs.schema import Config, Elastic
from manyfaces.configs.worker_machine import workers_here

_REMEDIES_TOLD = 3
GO_ON = "cluster.check_memory=false goes on all the same"


def fit_lines(config: Config, found: Plan, machine: Machine) -> Lines:
    """The line that says whether the run fits its machines."""
    if short := shortage(config, found, machine):
        return [("does not fit", short)]
    told = f"{size(found.memory_bytes)} of {size(machine.memory_bytes)} a worker"
    return [("fits", f"{told}; {_whose(machine)}")]


def device_lines(config: Config, machine: Machine) -> Lines:
    """The line that says that a plan for GPUs was made where no worker of it can run."""
    if (why := without_gpus(config)) is None:
        return []
    return [("GPUs", f"planned for {machine.name}, and not to be trained here: {why}")]


def shortage(config: Config, found: Plan, machine: Machine) -> str | None:
    """What is too large for what, with the remedies, in one line; None where the run fits."""
    fewest, has = _with_fewest_workers(config, found, machine)
    if found.memory_bytes > machine.memory_bytes:
        needs = f"{size(found.memory_bytes)} and has {size(machine.memory_bytes)}"
        told = f"a worker needs about {needs} ({_whose(machine)})"
    elif fewest.memory_bytes > has:
        needs = f"{size(fewest.memory_bytes)} and has {size(has)}"
        told = f"each of cluster.workers.min={fewest.world_size} workers needs about {needs}"
    elif host := _host_shortage(config, found, machine):
        told = host
    else:
        return None
    fitting = [
        f"{words} ({size(less)} a worker)" for words, less in remedies(config, found, machine)
    ]
    return f"{told}; {_one_of(fitting)}"


def without_gpus(config: Config) -> str | None:
    """Why a configuration for GPUs cannot run on this computer, which has none; None where it has,
    where none is wanted, and where the workers are a cluster's."""
    cluster = config.cluster
    if this_machine.num_gpus() or cluster.address is not None or not has_gpus(config):
        return None
    if cluster.machine is not None:
        wanted = f"cluster.machine is {cluster.machine}"
    elif cluster.gpus_per_worker == 1:
        wanted = "cluster.gpus_per_worker is 1"
    else:
        workers, threads = world_size(config), cluster.threads_per_worker
        wanted = (
            f"{workers} workers of {threads} threads need {workers * threads} CPUs of its "
            f"{os.cpu_count()}"
        )
    return (
        f"this machine has no GPU, and {wanted}; give the cluster.address of a cluster with GPUs, "
        "or train on the CPU with cluster.gpus_per_worker=0 and few cluster.workers"
    )


def _with_fewest_workers(config: Config, found: Plan, machine: Machine) -> tuple[Plan, float]:
    """The plan with the fewest workers that an elastic run goes on with, and the memory that each
    has then; with the planned ones for other runs."""
    workers = _fewest(config, found)
    fewest = plan(config, found.num_images, found.num_identities, workers)
    return fewest, _memory_of(machine, found.world_size, workers)


def _fewest(config: Config, found: Plan) -> int:
    workers = config.cluster.workers
    return workers.min if isinstance(workers, Elastic) else found.world_size


def _memory_of(machine: Machine, planned: int, workers: int) -> float:
    """Memory of each of so many workers; a computer whose memory `planned` ones share has more for
    each of fewer."""
    return machine.memory_bytes * (1 if machine.is_gpu else planned / workers)


def _whose(machine: Machine) -> str:
    told = f"{machine.name}: {machine.memory_told}" if machine.is_gpu else machine.memory_told
    if machine.known:
        return told
    stated = "cluster.machine" if machine.is_gpu else "check's --memory-gb"
    return f"{told}; assumed, as nothing is known of the workers' machines: {stated} says it"


def _one_of(fitting: list[str]) -> str:
    if not fitting:
        return "no single setting makes it fit: take more workers and a smaller train.batch_size"
    return f"what fits: {', or '.join(fitting[:_REMEDIES_TOLD])}"


def _host_shortage(config: Config, found: Plan, machine: Machine) -> str | None:
    """Of workers with GPUs on this computer, whether its own memory is too small."""
    if not found.has_gpus or config.cluster.address is not None or not machine.known:
        return None
    if config.cluster.machine is not None:
        return None
    workers, (has, where) = workers_here(config), this_machine.memory_bytes()
    needs = workers * found.host_bytes
    if needs <= has:
        return None
    return f"{workers} workers need about {size(needs)} of host memory, and {where} has {size(has)}"


def remedies(config: Config, found: Plan, machine: Machine) -> Iterator[tuple[str, int]]:
    """Settings that make the run fit, each alone, the cheapest first, with the memory of a worker
    then: of each key the value that changes least. The last of them change what is learnt."""
    told_keys: set[str] = set()
    for words in _candidates(config, found):
        if told_keys & words.keys():
            continue
        other = config
        for key, value in words.items():
            other = _changed(other, key, value)
        workers = words.get("cluster.workers", _fewest(config, found))
        less = plan(other, found.num_images, found.num_identities, workers)
        has = _memory_of(machine, found.world_size, workers)
        if less.memory_bytes <= has and not _host_shortage(other, less, machine):
            yield (
                " ".join(f"{key}={_word(value)}" for key, value in words.items()),
                less.memory_bytes,
            )


def _candidates(config: Config, found: Plan) -> Iterator[dict[str, Any]]:
    if found.copies_state and (not found.has_gpus or found.host_bytes):
        yield {"checkpoint.background": False}
    if not config.engine.activation_checkpointing and config.model.checkpointed_share < 1:
        yield {"engine.activation_checkpointing": True}
    if found.world_size > 1:
        yield from ({"engine.zero_stage": s} for s in (1, 2, 3) if s > config.engine.zero_stage)
    workers = found.world_size
    if not isinstance(config.cluster.workers, Elastic):
        if found.has_gpus:
            many = (workers * factor for factor in (2, 4, 8))
            yield from ({"cluster.workers": w} for w in many if w <= found.batch_size // 2)
        elif workers > 1:
            yield {"cluster.workers": 1}
    on_device = config.has_head and config.head.placement == "device"
    if on_device and found.has_gpus and config.head.sample_rate < 1:
        yield {"head.placement": "host"}
    at_a_time = config.train.images_at_a_time(workers)
    yield from ({"train.micro_batch_size": at_a_time // n} for n in (2, 4, 8, 16) if at_a_time > n)
    if config.train.precision == "float32":
        yield {"train.precision": "bfloat16"}
    for share in (2, 4, 8):
        if (smaller := found.batch_size // share) >= 2 * workers:
            yield {"train.batch_size": smaller}


def _changed(config: Config, key: str, value: Any) -> Config:
    section, name = key.split(".")
    changed = getattr(config, section).model_copy(update={name: value})
    return config.model_copy(update={section: changed})


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
