"""What each margin's step costs beside CosFace's: full softmax, C = 200,000, B = 512, D = 512, with
the allocator settings of CPU workers.

    python tests/bench/bench_losses.py [--classes 200000] [--logits recompute] [--rounds 5] [--json]

All margins step the same rows, in turn, `--rounds` times round; a ratio is the median of the
rounds' ratios. Sub-centres have rows of their own (three times as many). Targets: each margin
within 1.15 x, three sub-centres within 3.2 x.
"""

import argparse
import json
import os
import statistics
import sys
import time

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from manyfaces.cluster.memory import KEEP_MEMORY
from manyfaces.configs import schema
from manyfaces.models.head.partial_fc import PartialFC

B, D = 512, 512
KINDS = [
    "cosface",
    "softmax",
    "arcface",
    "combined",
    "sphereface",
    "adaface",
    "magface",
    "curricularface",
    "sphereface2",
    "uniface",
]
FILTERED, THREE = "cosface, filter_above 0.5", "cosface, 3 sub-centres"
SCALES = {"sphereface": 30.0, "sphereface2": 40.0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--logits", choices=["recompute", "store16"], default="recompute")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    seconds = measure(arguments.classes, arguments.logits, arguments.rounds)
    if arguments.json:
        print(json.dumps(seconds))  # noqa: T201
        return
    table = Table(
        "margin",
        "a step",
        "of CosFace's",
        "asked",
        title=f"C = {arguments.classes:,}, B = {B}, {arguments.logits}",
    )
    for name, mine in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(mine, seconds["cosface"], strict=True))
        table.add_row(
            name,
            f"{1e3 * statistics.median(mine):,.0f} ms",
            f"{ratio:.2f} x",
            "<= 3.2 x" if name == THREE else "<= 1.15 x",
        )
    Console(width=100).print(table)


def measure(num_classes: int, logits: str, rounds: int) -> dict[str, list[float]]:
    heads: dict[str, PartialFC] = {}
    shared = None
    for name in [*KINDS, FILTERED, THREE]:
        kind = name.partition(",")[0]
        config = schema.Head.model_validate(
            {
                "margin": {"kind": kind},
                "logits": logits,
                "scale": SCALES.get(kind, 64.0),
                "filter_above": 0.5 if name == FILTERED else None,
                "sub_centers": 3 if name == THREE else 1,
            }
        )
        head = PartialFC(
            config,
            num_classes if name in ("cosface", THREE) else 1,
            D,
            seed=0,
            weight_decay=5e-4,
            device=torch.device("cpu"),
        )
        if shared is None:
            shared = head
        elif name != THREE:  # the same rows under another margin
            head.num_classes, head.lo, head.hi = num_classes, shared.lo, shared.hi
            head.sub_centers, head.choice = shared.sub_centers, shared.choice
            head.margin = config.margin.build()
            head.margin.begin(config.scale, num_classes)
        heads[name] = head
    generator = torch.Generator().manual_seed(1)
    embeddings_BD, labels_B = (
        torch.randn(B, D, generator=generator),
        torch.randint(num_classes, (B,), generator=generator),
    )
    seconds: dict[str, list[float]] = {name: [] for name in heads}
    for turn in track(range(rounds + 1), "stepping", console=Console(stderr=True)):
        for name, head in heads.items():
            began = time.perf_counter()
            head.step(embeddings_BD, labels_B, lr=0.01, position=turn * B, batch_size=B)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
