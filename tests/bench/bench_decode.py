"""Images a second of the input path with DALI's decoder on the CPU and, where there is a GPU, on it
("mixed": the CPU reads the Huffman codes, the GPU does the rest).

    python tests/bench/bench_decode.py DATASET [--batch 256] [--rounds 3] [--tiny]

The loader as a run has it: order, index, checks, decode, flips, images on the device. Each row is
printed as a line of JSON.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from told_rows import Row, attempt, synchronise

from manyfaces.cluster.device import worker_device
from manyfaces.configs.schema import Data
from manyfaces.data.dataset.dataset import Dataset, open_dataset
from manyfaces.data.feed.loader import Loader
from manyfaces.data.feed.quarantine import Quarantine

CPU = torch.device("cpu")
WARM_UP = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    batch, batches = (16, 10) if arguments.tiny else (arguments.batch, 100)
    dataset, here = open_dataset(arguments.dataset), worker_device()
    for device in dict.fromkeys((CPU, here)):
        for threads in (1, 2) if arguments.tiny else (1, 4):
            where = "mixed" if device.type == "cuda" else "CPU"
            what = f"loader, {where} decoder, {threads} threads"

            def measure(
                device: torch.device = device, threads: int = threads, what: str = what
            ) -> Row:
                rates = [
                    rate(dataset, batch, batches, threads, device) for _ in range(arguments.rounds)
                ]
                detail = f"batch {batch}, {min(rates):,.0f} to {max(rates):,.0f}"
                return Row(what, statistics.median(rates), "images/s", detail)

            attempt(what, measure)


def rate(dataset: Dataset, batch: int, batches: int, threads: int, device: torch.device) -> float:
    """Images a second, after what was decoded ahead while the first batch was waited for."""
    with (
        tempfile.TemporaryDirectory(prefix="manyfaces-bench-") as folder,
        Loader(
            dataset,
            Data(),
            seed=0,
            batch_size=batch,
            rank=0,
            world_size=1,
            position=0,
            end=(batches + WARM_UP) * batch,
            device=device,
            quarantine=Quarantine(Path(folder) / "quarantine.jsonl", dataset, 0.0),
            decode_threads=threads,
        ) as loader,
    ):
        stream = iter(loader)
        for _ in range(WARM_UP):
            next(stream)
        synchronise(device)
        began = time.perf_counter()
        for _ in range(batches):
            next(stream)
        synchronise(device)
        return batches * batch / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
