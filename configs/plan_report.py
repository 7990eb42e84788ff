"""All that is told of a run before it starts: the plan, whether it fits, hours, and what other
settings would cost."""

from dataclasses import dataclass

from manyfaces.configs import plan, plan_lines, precision
from manyfaces.configs.fit import device_lines, fit_lines, shortage
from manyfaces.configs.interval_lines import interval_lines
from manyfaces.configs.machines import Machine
from manyfaces.configs.plan import Plan
from manyfaces.configs.plan_lines import Lines
from manyfaces.configs.plan_time import MeasuredRate, time_lines
from manyfaces.configs.schema import Config
from manyfaces.configs.worker_machine import machine


@dataclass(frozen=True)
class Given:
    """What a person knows beside the configuration; None is estimated."""

    memory_gb: float | None = None
    rate: MeasuredRate | None = None
    mtbf_hours: float | None = None
    restart_s: float | None = None


def report(
    config: Config, num_images: int, num_identities: int, given: Given
) -> tuple[Lines, str | None]:
    """The lines of `manyfaces check`, and what surely does not fit its workers, if anything: a
    cluster's CPU workers may have more memory than this computer."""
    found = plan.plan(config, num_images, num_identities, plan.world_size(config))
    own = machine(config, given.memory_gb)
    interval = interval_lines(
        config,
        found,
        own,
        rate=given.rate,
        mtbf_hours=given.mtbf_hours,
        restart_s=given.restart_s,
    )
    lines = [
        *summary_lines(config, found, own, given.rate),
        *interval,
        *plan_lines.sampling_lines(config, found, own),
        *plan_lines.head_lines(config, found, own),
    ]
    short = shortage(config, found, own) if own.known or own.is_gpu else None
    return lines, short.told if short is not None and short.is_sure else None


def summary_lines(
    config: Config, found: Plan, own: Machine, rate: MeasuredRate | None = None
) -> Lines:
    """What a run will do and cost: the lines that it keeps in its folder."""
    return [
        *plan_lines.lines(found),
        *device_lines(config, own),
        *_precision_lines(config, found),
        *fit_lines(config, found, own),
        *time_lines(found, own, rate),
    ]


def _precision_lines(config: Config, found: Plan) -> Lines:
    told = precision.told(config.train, is_gpu=found.has_gpus)
    return [] if told is None else [("precision", told)]
