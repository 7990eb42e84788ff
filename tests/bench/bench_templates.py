"""Scoring IJB-C 1:1 at its size on made embeddings: pooling of templates, 15.7 million pairs, the
ROC, with the memory of it all; the pairs beside InsightFace's plain numpy loop.

    python tests/bench/bench_templates.py [--pairs 15658489] [--loop-pairs 600000]

The loop scores as many pairs as `--loop-pairs` says, in the batches of 100,000 of its
`eval_ijbc.py`, and its time for all is that at the same rate.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from manyfaces.train.evaluation.operating_points import Roc
from manyfaces.train.evaluation.pair_scores import pair_scores
from manyfaces.train.evaluation.templates import Members, pooled

IMAGES, TEMPLATES, DIM = 469_375, 23_124, 512
LOOP_BATCH = 100_000
T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What the work gives, with its seconds by the clock and of processor time."""
    clock, cpu = time.perf_counter(), time.process_time()
    given = work()
    return given, time.perf_counter() - clock, time.process_time() - cpu


def loop_scores(
    unit_KD: NDArray[np.float64], first_P: NDArray[np.int64], second_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The procedure of InsightFace's `verification`: rows gathered and multiplied by batches."""
    scores_P = np.empty(len(first_P))
    for start in range(0, len(first_P), LOOP_BATCH):
        part = slice(start, start + LOOP_BATCH)
        scores_P[part] = np.sum(unit_KD[first_P[part]] * unit_KD[second_P[part]], -1)
    return scores_P


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("--pairs", type=int, default=15_658_489)
    words.add_argument("--loop-pairs", type=int, default=600_000)
    asked = words.parse_args()
    random = np.random.default_rng(0)
    embeddings_ND = random.standard_normal((IMAGES, DIM), np.float32)
    template_N = np.sort(np.append(np.arange(TEMPLATES), random.integers(0, TEMPLATES, IMAGES)))
    template_N = template_N[-IMAGES:]
    media_N = np.arange(IMAGES) // 3
    # IJB's pairs are of templates that are enrolled and of templates that are looked for.
    first_P = random.integers(0, TEMPLATES // 7, asked.pairs)
    second_P = random.integers(TEMPLATES // 7, TEMPLATES, asked.pairs)
    same_P = random.random(asked.pairs) < 19_557 / 15_658_489

    members, *listed = timed(
        lambda: Members.of(template_N - template_N[0], media_N, np.arange(IMAGES))
    )
    unit_KD, *pooling = timed(lambda: pooled(embeddings_ND, members, length="keep"))
    first_P, second_P = first_P % len(unit_KD), second_P % len(unit_KD)
    scores_P, *scoring = timed(lambda: pair_scores(unit_KD, first_P, second_P))
    roc, *curve = timed(lambda: Roc.of(scores_P, same_P))
    some = slice(0, min(asked.loop_pairs, asked.pairs))
    expected_p, *loop = timed(lambda: loop_scores(unit_KD, first_P[some], second_P[some]))
    np.testing.assert_allclose(scores_P[some], expected_p, atol=1e-12)
    scale = asked.pairs / len(expected_p)

    table = Table("", "seconds", "of processor time", title=f"{asked.pairs:,} pairs")
    steps = {
        "members of templates": listed,
        f"pooling of {IMAGES:,} embeddings": pooling,
        "scores of the pairs": scoring,
        f"ROC, {len(roc.threshold_T):,} thresholds": curve,
    }
    for name, (clock, cpu) in steps.items():
        table.add_row(name, f"{clock:.1f}", f"{cpu:.1f}")
    total = np.sum(list(steps.values()), axis=0)
    table.add_row("all of it", f"{total[0]:.1f}", f"{total[1]:.1f}")
    table.add_row("plain numpy loop, pairs alone", *(f"{each * scale:.1f}" for each in loop))
    ratios = [one * scale / other for one, other in zip(loop, scoring, strict=True)]
    table.add_row("loop / ours, pairs alone", *(f"{each:.1f} x" for each in ratios))
    Console().print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    Console().print(f"peak memory of the process, embeddings included: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
