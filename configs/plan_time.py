"""How long a run takes, and on what: by a rate that was measured, or by the arithmetic of a step
and the rates of a machine."""

from dataclasses import dataclass

from manyfaces.configs.amounts import HOUR, duration
from manyfaces.configs.machines import Machine
from manyfaces.configs.plan import Plan


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, one part after the other."""

    backbone_s: float
    head_s: float
    sent_s: float
    """What a worker sends, as if no arithmetic went on meanwhile."""

    @property
    def seconds(self) -> float:
        """All together."""
        return self.backbone_s + self.head_s + self.sent_s

    def shares(self, objective: str) -> str:
        """The parts' shares, for people."""
        parts = ("backbone", self.backbone_s), (objective, self.head_s), ("sent", self.sent_s)
        return ", ".join(f"{name} {part / self.seconds:.0%}" for name, part in parts)


@dataclass(frozen=True)
class MeasuredRate:
    """Images a second of all workers."""

    images_per_s: float
    source: str
    """Who measured it, for people."""


def step_time(found: Plan, machine: Machine) -> StepTime:
    """About the time of a step on this machine; all parts are zero where nothing is known of the
    network."""
    if not found.network.flops:
        return StepTime(0.0, 0.0, 0.0)
    sent = found.network.wire_bytes + found.objective.wire_bytes
    return StepTime(
        found.network.flops / found.world_size / machine.network_flops,
        machine.seconds(found.objective),
        machine.sending(sent, found.world_size),
    )


def step_seconds(found: Plan, machine: Machine, rate: MeasuredRate | None = None) -> float:
    """The time of a step: measured where a rate is given, else estimated."""
    if rate is not None:
        return found.batch_size / rate.images_per_s
    return step_time(found, machine).seconds


def time_lines(
    found: Plan, machine: Machine, rate: MeasuredRate | None = None
) -> list[tuple[str, str]]:
    """Hours of the whole run, GPU-hours, what they are spent on and what that rests on; nothing
    where it is not known."""
    step_s, estimated = step_seconds(found, machine, rate), step_time(found, machine)
    if step_s == 0:
        return []
    seconds = step_s * found.num_steps
    told = f"about {duration(seconds)} at {found.batch_size / step_s:,.0f} images/s"
    if machine.is_gpu:
        hours = found.world_size * seconds / HOUR
        told += f", {hours:,.0f} GPU-hours" if hours >= 100 else f", {hours:.3g} GPU-hours"
    if estimated.seconds:
        told += f": {estimated.shares('head' if found.has_head else 'objective')}"
    told_of = [("time", told)]
    if rate is not None:
        shares = "; the shares are estimated by the arithmetic" if estimated.seconds else ""
        told_of.append(("  measured", f"{rate.source}{shares}"))
    else:
        told_of.append(("  assumed", machine.assumed))
        if found.world_size > 1:
            link, where = machine.link_of(found.world_size)
            speed = f"{link / 1e9:.3g} GB/s that a worker sends {where}"
            told_of.append(("  assumed", f"{speed}, none of it beside the arithmetic"))
    return [*told_of, ("  not in it", "failures, evaluations, checkpoints and waits for data")]
