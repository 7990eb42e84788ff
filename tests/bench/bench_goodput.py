"""Goodput of a day at 1,024 workers, played out failure by failure with a run's real settings.

    python tests/bench/bench_goodput.py [CONFIG] [path.to.key=value ...] [--days 2000] [--seed 1]

CONFIG (default: configs/pretrain/glint360k_r100.yaml) and its words give `checkpoint.every_steps`,
`keep` and `background`, `cluster.max_failures`, `step_timeout_s`, `grace_s` and
`schedule_timeout_s`; what a checkpoint costs comes from the plan, as in `manyfaces check`. The
workers and a batch of 32 images each are set here, in place of what CONFIG says. Nothing is
trained. Goodput is the time of the steps that last over the time of the day. The assumptions are
printed. Each row is a rate of failures; columns are the settings as they are, those with
`max_failures` counted over the whole run as Ray counts it, and those with the interval and the
`step_timeout_s` that are best.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from manyfaces.configs import plan
from manyfaces.configs.amounts import HOUR
from manyfaces.configs.goodput import GPU_MTBF_HOURS, Interruptions
from manyfaces.configs.interval_lines import (
    AGREE_S,
    COMMIT_S,
    COPY_BYTES_S,
    STORE_BYTES_S,
    WRITE_BYTES_S,
    interruptions,
)
from manyfaces.configs.load import load
from manyfaces.configs.plan_time import step_seconds
from manyfaces.configs.schema import Config
from manyfaces.configs.worker_machine import machine

WORKERS, WORKER_BATCH, NODE_GPUS, DAY_S = 1024, 32, 8, 24 * HOUR
RATES = {
    "Llama 3: 419 in 54 days on 16,384 GPUs (arXiv 2407.21783)": GPU_MTBF_HOURS / WORKERS,
    "OPT-175B: at least 105 restarts in two months on 992 GPUs (arXiv 2205.01068)": 60 * 24 / 105,
    "assumed": 7.9,
    "that of all of Llama 3's 16,384 GPUs together": GPU_MTBF_HOURS / 16_384,
}
"""Mean hours between failures of 1,024 workers, by where they come from; that of OPT-175B is at
most so long."""
PLANNED = 47 / 419
"""Planned interruptions for each unexpected one (Llama 3): they come with a notice."""
HARDWARE = 0.78
"""Share of the unexpected ones that is of hardware (Llama 3): a node is replaced."""
HUNG = 0.05
"""Share that ends no process: found by `cluster.step_timeout_s`. Assumed."""
SPARE_S = 60.0
"""Mean wait for a node in place of a lost one. Assumed."""
TYPED_AGAIN_S = 1800.0
"""Until a person has typed the command of a run that has ended. Assumed."""
DAMAGED = 0.001
"""Share of checkpoints that are found damaged on resume. Assumed."""
RESTART_S = {
    "its death is told": 0.5,
    "teardown and placement": 5.0,
    "process": 6.4,
    "imports": 2.7,
    "process group": 20.0,
    "engine": 3.0,
    "warm-up and first step": 11.0,
}
"""Seconds of the parts of a restart but for the bytes. Process, imports and engine are what
`bench_restart.py` gave for two workers on two cores under a load of 8, when more was imported than
now; the others are assumed."""
READ_BYTES_S = 1e9
"""What a worker reads and compares in a second of a checkpoint. Assumed."""


@dataclass(frozen=True)
class Settings:
    """What a run is played with."""

    lost: Interruptions
    step_s: float
    every_steps: int
    keep: int
    max_failures: int
    """Restarts before the run ends and is typed again."""
    refilled: bool
    """Whether a new checkpoint makes restarts free again."""
    step_timeout_s: float
    schedule_timeout_s: float
    grace_s: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default="configs/pretrain/glint360k_r100.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--images-per-s", type=float, help="of all workers; default: estimated")
    parser.add_argument("--days", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    words = [f"cluster.workers={WORKERS}", "cluster.gpus_per_worker=1", *arguments.overrides]
    config = load(arguments.config, [f"train.batch_size={WORKER_BATCH * WORKERS}", *words])
    settings = settings_of(config, arguments.images_per_s)
    console = Console()
    given = arguments.images_per_s
    if given is None:
        step_by = f"estimated: {machine(config).assumed}"
    else:
        step_by = f"at {given:,.0f} images/s"
    console.print(
        f"simulated, {arguments.days:,} days, seed {arguments.seed}: {arguments.config} with "
        f"{WORKERS:,} workers and a batch of {config.train.batch_size:,}; a step {step_by}",
        highlight=False,
    )
    for line in assumptions(settings):
        console.print(line, highlight=False)
    table = Table("a failure each", "as they are", "max_failures for good", "at their best")
    for name, hours in RATES.items():
        now = with_rate(settings, hours)
        best_steps = max(round(now.lost.best_work_s() / now.step_s), 1)
        best = replace(now, every_steps=best_steps, step_timeout_s=60 + now.lost.write_s)
        figures = [
            day(each, arguments.days, arguments.seed)
            for each in (now, replace(now, refilled=False), best)
        ]
        figures[-1] += f", every {best_steps:,}"
        table.add_row(f"{hours:.1f} h ({name})", *figures)
    console.print(table)


def settings_of(config: Config, images_per_s: float | None) -> Settings:
    """The settings of this configuration on a dataset of the size that it expects."""
    images, identities = config.data.expect_images, config.data.expect_identities
    assert images is not None
    assert identities is not None
    found = plan.plan(config, images, identities, WORKERS)
    step_s = step_seconds(found, machine(config))
    if images_per_s is not None:
        step_s = found.batch_size / images_per_s
    mine = found.network.checkpoint_bytes + found.objective.state_bytes
    restart_s = sum(RESTART_S.values()) + 2 * mine / READ_BYTES_S
    return Settings(
        lost=interruptions(config, found, None, restart_s),
        step_s=step_s,
        every_steps=config.checkpoint.every_steps,
        keep=config.checkpoint.keep,
        max_failures=config.cluster.max_failures,
        refilled=True,
        step_timeout_s=config.cluster.step_timeout_s,
        schedule_timeout_s=config.cluster.schedule_timeout_s,
        grace_s=config.cluster.grace_s,
    )


def with_rate(settings: Settings, hours: float) -> Settings:
    return replace(settings, lost=replace(settings.lost, mtbf_s=hours * HOUR))


def assumptions(settings: Settings) -> list[str]:
    """The lines that say what the figures rest on."""
    lost = settings.lost
    parts = ", ".join(f"{part} {seconds:g}" for part, seconds in RESTART_S.items())
    return [
        f"{WORKERS:,} workers on {WORKERS // NODE_GPUS} nodes; a step {settings.step_s:.3f} s; a "
        f"checkpoint every {settings.every_steps:,} steps, which wait {lost.stall_s:.2f} s for it; "
        f"committed after {lost.write_s:.1f} s; {settings.keep} kept, of which {DAMAGED:.1%} are "
        "found damaged",
        f"a checkpoint: the steps wait {AGREE_S:g} s and for the network's copy at "
        f"{COPY_BYTES_S:.0e} bytes/s; a worker writes {WRITE_BYTES_S:.0e} bytes/s, the storage "
        f"takes {STORE_BYTES_S:.0e} of all, and the commit {COMMIT_S:g} s",
        f"a restart {lost.restart_s:.0f} s: {parts}, the rest the checkpoint's bytes, which a "
        f"worker reads and compares at {READ_BYTES_S:.0e} bytes/s",
        "failures are independent, at exponential times, also while workers restart; a checkpoint "
        "is asked for no sooner than the one before it is committed",
        f"{HARDWARE:.0%} of failures cost a node, and a spare comes after {SPARE_S:.0f} s on "
        f"average; {HUNG:.0%} hang, and are found after {settings.step_timeout_s:.0f} s "
        f"(cluster.step_timeout_s); {PLANNED:.0%} more come with a notice of "
        f"{settings.grace_s:.0f} s, of which a checkpoint may take four fifths; who waits longer "
        f"than {settings.schedule_timeout_s:.0f} s for "
        f"a node, or has used up cluster.max_failures={settings.max_failures}, ends and is typed "
        f"again after {TYPED_AGAIN_S / 60:.0f} min",
    ]


def day(settings: Settings, days: int, seed: int) -> str:
    """Mean and 5 % quantile of the goodput of many days, and how often a person was needed."""
    played = [play(settings, random.Random(f"{seed} {number}")) for number in range(days)]
    goodputs = sorted(goodput for goodput, _ in played)
    typed = statistics.mean(typed for _, typed in played)
    low = goodputs[len(goodputs) // 20]
    return f"{statistics.mean(goodputs):.2%}, 5 % below {low:.2%}; typed again {typed:.2f} x"


def play(settings: Settings, rng: random.Random) -> tuple[float, int]:
    """One day: its goodput, and how often the command was typed again."""
    lost, span_s = settings.lost, settings.every_steps * settings.step_s
    span_s = max(span_s, lost.write_s - lost.stall_s)
    now, lasting_s, failures, typed = 0.0, 0.0, 0, 0
    draw: Callable[[], float] = lambda: rng.expovariate((1 + PLANNED) / lost.mtbf_s)  # noqa: E731
    while now < DAY_S:
        lives_s = min(draw(), DAY_S - now)
        now += lives_s
        whole = int(lives_s / (span_s + lost.stall_s))
        if now >= DAY_S:  # the run goes on after the day
            lasting_s += lives_s - whole * lost.stall_s
            break
        committed = max(int((lives_s - lost.write_s) / (span_s + lost.stall_s)), 0)
        failures = 1 if committed and settings.refilled else failures + 1
        if rng.random() < PLANNED / (1 + PLANNED):
            # The notice is followed at once where the write fits into four fifths of the grace.
            if lost.write_s < 0.8 * settings.grace_s:
                lasting_s += lives_s - (whole + 1) * lost.stall_s
                now += lost.write_s
            else:
                lasting_s += committed * span_s
            failures -= 1  # an end that was asked for is no failure
        else:
            if committed and rng.random() < DAMAGED and settings.keep > 1:
                committed -= 1
            lasting_s += committed * span_s
            now += settings.step_timeout_s if rng.random() < HUNG else 0.0
        waits_s, again = _restart(settings, rng, draw)
        failures += again
        if 0 <= settings.max_failures < failures or waits_s == float("inf"):
            waits_s, failures, typed = TYPED_AGAIN_S + lost.restart_s, 0, typed + 1
        now += waits_s
    return lasting_s / DAY_S, typed


def _restart(
    settings: Settings, rng: random.Random, draw: Callable[[], float]
) -> tuple[float, int]:
    """Seconds until the first new step, and the failures on the way; for ever where no node
    comes in time."""
    waited_s, failures = 0.0, 0
    while True:
        place_s = rng.expovariate(1 / SPARE_S) if rng.random() < HARDWARE else 0.0
        if place_s > settings.schedule_timeout_s:
            return float("inf"), failures
        lives_s = draw()
        if lives_s > settings.lost.restart_s:
            return waited_s + place_s + settings.lost.restart_s, failures
        waited_s, failures = waited_s + place_s + lives_s, failures + 1


if __name__ == "__main__":
    main()
