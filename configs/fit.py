"""Whether a run fits the memory of its workers, and what would make it fit."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from manyfaces.configs import this_machine
from manyfaces.configs.amounts import size
from manyfaces.configs.launcher import under_torchrun, works_here
from manyfaces.configs.machines import Machine
from manyfaces.configs.node import Node
from manyfaces.configs.plan import Plan, has_gpus, plan, world_size
from manyfaces.configs.plan_lines import Lines
from manyfaces.configs.precision import precision
from manyfaces.configs.schema import Config, Elastic
from manyfaces.configs.worker_machine import workers_here

_REMEDIES_TOLD = 3
_UNSURE = 0.2
"""By how much, as a share of what is there, a plan may exceed it before it surely does not fit.
`tests/e2e/test_worker_memory.py` holds plans for CPUs to 15 % of real workers, and the demo's was
17 % above one (`tests/bench/bench_memory.py`). Plans for GPUs are not measured."""
GO_ON = "cluster.check_memory=false goes on all the same"


def fit_lines(config: Config, found: Plan, machine: Machine) -> Lines:
    """The line that says whether the run fits its machines."""
    if short := shortage(config, found, machine):
        return [(short.label, short.told)]
    told = f"{size(found.memory_bytes)} of {size(machine.memory_bytes)} a worker"
    return [("fits", f"{told}; {_whose(machine)}")]


def device_lines(config: Config, machine: Machine) -> Lines:
    """The line that says that a plan for GPUs was made where no worker of it can run."""
    if (why := without_gpus(config)) is None:
        return []
    return [("GPUs", f"planned for {machine.name}, and not to be trained here: {why}")]


@dataclass(frozen=True)
class Shortage:
    """What a run needs more of than its machines have."""

    needs: float
    """Bytes."""
    has: float
    """Bytes that are there."""
    told: str
    """What is too large for what, with the remedies, in one line."""

    @property
    def is_sure(self) -> bool:
        """Whether it is too much by more than a plan may be wrong."""
        return self.needs > (1 + _UNSURE) * self.has

    @property
    def label(self) -> str:
        """What the shortage means, for people."""
        return "does not fit" if self.is_sure else "may not fit"


def shortage(config: Config, found: Plan, machine: Machine) -> Shortage | None:
    """What the run lacks most by the plan, relative to what is there; None where it fits."""
    short = [each for each in _needs(config, found, machine) if each.needs > each.has]
    if not short:
        return None
    worst = max(short, key=lambda each: each.needs / max(each.has, 1.0))
    fitting = [
        f"{words} ({size(less)} a worker)" for words, less in remedies(config, found, machine)
    ]
    told = f"{worst.told}; {_one_of(fitting)}"
    if not worst.is_sure:
        told += f"; as the plan may be wrong by about {_UNSURE:.0%}, it may fit all the same"
    return replace(worst, told=told)


def _needs(config: Config, found: Plan, machine: Machine) -> Iterator[Shortage]:
    """What has to fit, each with what there is of it: the memory of the planned workers, that of
    the fewest that an elastic run goes on with, and the host's."""
    has, fewest = machine.memory_bytes, _fewest(config, found)
    needs = f"{size(found.memory_bytes)} and has {size(has)}"
    told = f"a worker needs about {needs} ({_whose(machine)})"
    yield Shortage(found.memory_bytes, has, told)
    if fewest != found.world_size:
        has = _memory_of(machine, found.world_size, fewest)
        taken = plan(config, found.num_images, found.num_identities, fewest).memory_bytes
        needs = f"{size(taken)} and has {size(has)}"
        told = f"each of cluster.workers.min={fewest} workers needs about {needs}"
        yield Shortage(taken, has, told)
    if _is_host_known(config, found, machine):
        workers, (has, where) = workers_here(config), this_machine.memory_bytes()
        host = workers * found.host_bytes
        needs = f"{size(host)} of host memory, and {where} has {size(has)}"
        yield Shortage(host, has, f"{workers} workers need about {needs}")


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


def _fewest(config: Config, found: Plan) -> int:
    """The fewest workers that an elastic run goes on with; of other runs, and under torchrun, which
    decides how many there are, the planned ones."""
    workers = config.cluster.workers
    if isinstance(workers, Elastic) and not under_torchrun():
        return workers.min
    return found.world_size


def _memory_of(machine: Machine, planned: int, workers: int) -> float:
    """Memory of each of so many workers, where that of the machine is what `planned` ones have."""
    return machine.memory_bytes * (planned / workers if machine.shares_memory else 1)


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


def _is_host_known(config: Config, found: Plan, machine: Machine) -> bool:
    """Whether the workers have GPUs of this computer, whose own memory they share."""
    is_here = config.cluster.address is None and config.cluster.machine is None
    return found.has_gpus and machine.known and is_here


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
        workers = words.get("cluster.workers", found.world_size)
        less = plan(other, found.num_images, found.num_identities, workers)
        has = _memory_of(machine, found.world_size, workers)
        its = replace(machine, memory_bytes=has)
        if any(each.needs > each.has for each in _needs(other, less, its)):
            continue
        told_keys |= words.keys()
        fewest = plan(other, found.num_images, found.num_identities, _fewest(other, less))
        yield (
            " ".join(f"{key}={_word(value)}" for key, value in words.items()),
            fewest.memory_bytes,
        )


def _candidates(config: Config, found: Plan) -> Iterator[dict[str, Any]]:
    if found.copies_state and (not found.has_gpus or found.host_bytes):
        yield {"checkpoint.background": False}
    if not config.engine.activation_checkpointing and config.model.checkpointed_share < 1:
        yield {"engine.activation_checkpointing": True}
    if found.world_size > 1:
        yield from ({"engine.zero_stage": s} for s in (1, 2, 3) if s > config.engine.zero_stage)
    yield from _numbers_of_workers(config, found)
    on_device = config.has_head and config.head.placement == "device"
    if on_device and found.has_gpus and config.head.sample_rate < 1:
        yield {"head.placement": "host"}
    workers = found.world_size
    at_a_time = config.train.images_at_a_time(workers)
    yield from ({"train.micro_batch_size": at_a_time // n} for n in (2, 4, 8, 16) if at_a_time > n)
    if precision(config.train, is_gpu=found.has_gpus) == "float32":
        yield {"train.precision": "bfloat16"}
    for share in (2, 4, 8):
        if (smaller := found.batch_size // share) >= 2 * workers:
            yield {"train.batch_size": smaller}


def _numbers_of_workers(config: Config, found: Plan) -> Iterator[dict[str, Any]]:
    """Other numbers of workers, where the configuration decides it: more GPUs have less each to
    hold, of which this computer has so many and a cluster any number; without GPUs workers share
    memory."""
    wanted, workers, gpus = config.cluster.workers, found.world_size, this_machine.num_gpus()
    if works_here(config.cluster):
        return
    if isinstance(wanted, Elastic):
        more = (wanted.min * factor for factor in (2, 4, 8))
        yield from ({"cluster.workers.min": w} for w in more if w <= wanted.max)
    elif found.has_gpus:
        most = found.batch_size // 2
        if gpus and config.cluster.address is None:
            most = min(most, gpus)
        yield from ({"cluster.workers": w} for f in (2, 4, 8) if (w := f * workers) <= most)
    elif workers > 1:
        yield {"cluster.workers": 1}


def _changed(node: Node, key: str, value: Any) -> Any:
    """The node with another value at the dotted key."""
    name, _, rest = key.partition(".")
    return node.model_copy(
        update={name: _changed(getattr(node, name), rest, value) if rest else value}
    )


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
