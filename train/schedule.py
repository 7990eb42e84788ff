"""The learning rate as a function of samples seen, so that the world size and the step length do
not matter."""

import math

from manyfaces.configs import schema


def learning_rate(
    config: schema.Schedule, peak: float, position: int, warmup: int, total: int
) -> float:
    """Rate of the step that begins at `position` of `total` samples: linear warm-up over `warmup`
    samples, then decay to 0.

    Polynomial: peak (1 - t)^power, as InsightFace's `PolynomialLRWarmup`; cosine: peak (1 + cos(pi
    t)) / 2 (arXiv 1608.03983), with t the share of the samples after warm-up.
    """
    if position < warmup:
        return peak * position / warmup
    t = min((position - warmup) / max(total - warmup, 1), 1.0)
    if config.kind == "polynomial":
        return float(peak * (1 - t) ** config.power)
    return peak * (1 + math.cos(math.pi * t)) / 2
