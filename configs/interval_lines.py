"""The interval between a run's checkpoints beside the one that failures and their cost make best,
in a line for people."""

from math import ceil

from manyfaces.configs.amounts import HOUR, duration
from manyfaces.configs.goodput import Interruptions, published_mtbf_s
from manyfaces.configs.machines import Machine
from manyfaces.configs.plan import Plan
from manyfaces.configs.plan_lines import Lines
from manyfaces.configs.plan_time import MeasuredRate, step_seconds
from manyfaces.configs.schema import Config

COPY_BYTES_S = 1e10
"""What a worker copies to the host's memory in a second while its step waits. Rows of the head are
copied while training goes on."""
WRITE_BYTES_S = 5e8
"""What a worker hashes, writes and flushes in a second."""
STORE_BYTES_S = 1e10
"""What the shared storage takes from all workers in a second."""
AGREE_S, COMMIT_S = 0.2, 2.0
"""What a checkpoint costs however small it is: all workers agree on it while the step waits, and
its folder and files are on disk."""
RESTART_S = 120.0
"""From a failure to the first new step, where a person does not say it: detection, placement, a
process that imports torch, NCCL, the checkpoint's bytes compared and read."""
_NOT_WORTH = 0.001
"""A difference of goodput that no setting is changed for."""


def interruptions(
    config: Config, found: Plan, mtbf_hours: float | None, restart_s: float | None
) -> Interruptions:
    """What a run of this plan loses time to; `mtbf_hours` is of all workers together."""
    mine = found.network.checkpoint_bytes + found.objective.state_bytes
    write_s = COMMIT_S + max(mine / WRITE_BYTES_S, found.checkpoint_bytes / STORE_BYTES_S)
    waits_s = AGREE_S + found.network.checkpoint_bytes / COPY_BYTES_S
    background = config.checkpoint.background
    return Interruptions(
        mtbf_s=published_mtbf_s(found.world_size) if mtbf_hours is None else HOUR * mtbf_hours,
        stall_s=waits_s if background else AGREE_S + write_s,
        write_s=write_s if background else 0.0,
        restart_s=RESTART_S if restart_s is None else restart_s,
    )


def interval_lines(
    config: Config,
    found: Plan,
    machine: Machine,
    *,
    rate: MeasuredRate | None = None,
    mtbf_hours: float | None = None,
    restart_s: float | None = None,
) -> Lines:
    """The line about `checkpoint.every_steps`; what is not given is estimated."""
    step_s = step_seconds(found, machine, rate)
    if step_s == 0:  # of a network of one's own nothing is known
        return []
    lost = interruptions(config, found, mtbf_hours, restart_s)
    every = config.checkpoint.every_steps
    best = min(max(ceil(lost.best_work_s() / step_s), 1), found.num_steps)
    has, could = (lost.goodput(steps * step_s) for steps in (every, best))
    estimated = ", steps as estimated (--images-per-s, --like)" if rate is None else ""
    told = (
        f"{_interval(every, step_s)}: at {found.world_size:,} workers with a failure each "
        f"{duration(lost.mtbf_s)}, a restart of {duration(lost.restart_s)} and a write of "
        f"{duration(lost.write_s or lost.stall_s)}{estimated}, "
    )
    if could - has < _NOT_WORTH:
        return [("checkpoints every", f"{told}goodput {has:.1%}; none loses noticeably less")]
    told += f"{_interval(best, step_s)} would lose least: goodput {could:.1%} instead of {has:.1%}"
    return [("checkpoints every", told)]


def _interval(steps: int, step_s: float) -> str:
    return f"{steps:,} steps ({duration(steps * step_s)})"
