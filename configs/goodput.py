"""What failures and checkpoints cost a run, and the interval between checkpoints that costs least.

All times are in seconds. M is the mean time between failures of all workers together, which fail at
random moments (exponential times); S the useful work between two checkpoints, C what a checkpoint
makes the steps wait for, W the time from its beginning until it is committed while training goes
on, R the time from a failure to the first new step.

A failure falls back on the last checkpoint that is committed. Over many intervals the expected time
for the work of one is

    E = M exp((R + W) / M) (exp((S + C) / M) - 1)

which is the complete model of J. T. Daly (A higher order estimate of the optimum checkpoint
interval for restart dumps, Future Generation Computer Systems 22, 2006) but for W, which his
checkpoints do not have: an interval begins to count when the write of the checkpoint before it is
done. Goodput is S / E. W does not move the optimum, and only bounds it from below: one checkpoint
is written at a time.
"""

from dataclasses import dataclass
from math import exp, expm1, sqrt

from manyfaces.configs.amounts import HOUR

_HOPELESS = 700.0
"""Of an interval so many mean times between failures long none is ever completed; exp of little
more is above all floating-point numbers."""
GPU_MTBF_HOURS = 54 * 24 * 16_384 / 419
"""Mean time between failures of a GPU with its share of a node and of the network, 50,676 h: 419
unexpected interruptions in 54 days on 16,384 H100s (The Llama 3 Herd of Models, arXiv 2407.21783,
section 3.3.4)."""


@dataclass(frozen=True)
class Interruptions:
    """What a run loses time to."""

    mtbf_s: float
    """Mean time between failures of all workers together."""
    stall_s: float
    """What a checkpoint makes the steps wait for."""
    write_s: float
    """From the beginning of a checkpoint until it is committed, while training goes on."""
    restart_s: float
    """From a failure to the first new step."""

    def goodput(self, work_s: float) -> float:
        """Share of the time that is spent on steps which last, with a checkpoint behind each
        `work_s` seconds of steps."""
        # An interval shorter than the write waits for it.
        span_s = max(work_s + self.stall_s, self.write_s)
        if span_s > _HOPELESS * self.mtbf_s:
            return 0.0
        lost = exp(-(self.restart_s + self.write_s) / self.mtbf_s)
        return work_s / self.mtbf_s / expm1(span_s / self.mtbf_s) * lost

    def best_work_s(self) -> float:
        """Seconds of steps between checkpoints that lose least: Daly's higher order estimate,
        and no less than a write takes."""
        stall, mtbf = self.stall_s, self.mtbf_s
        best = mtbf
        if stall < 2 * mtbf:
            ratio = stall / (2 * mtbf)
            best = sqrt(2 * stall * mtbf) * (1 + sqrt(ratio) / 3 + ratio / 9) - stall
        return max(best, self.write_s - stall)


def published_mtbf_s(num_workers: int) -> float:
    """Mean time between failures of so many workers, a GPU each."""
    return GPU_MTBF_HOURS * HOUR / num_workers
