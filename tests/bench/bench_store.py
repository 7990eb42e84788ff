"""Images a second from an S3 server on loopback into a cold cache, beside the same shards in a
local folder.

    python tests/bench/bench_store.py DATASET [--window 8] [--repeat 3] [--json]

One pass over the dataset in a process of its own each time, shuffled and decoded, counted from the
first batch after the first window. The server (moto's) runs on the same cores as the reader: what
it costs is in the figure. The shards must differ: the cache goes by content.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.schema import Data
from manyfaces.configs.transforms.flip import Flip
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.feed.loader import Loader
from manyfaces.data.feed.quarantine import Quarantine

sys.path.insert(0, str(Path(__file__).parents[1]))
from store_server import CREDENTIALS, s3_server

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one-pass", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_pass:
        print(one_pass(arguments.dataset, arguments.window))  # noqa: T201
        return
    with s3_server() as port:
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        url = upload(Path(arguments.dataset))
        rates = [
            [told(place, arguments.window) for place in (arguments.dataset, url)]
            for _ in range(arguments.repeat)
        ]
    ratio = statistics.median(far / near for near, far in rates)
    if arguments.json:
        print(json.dumps({"near, far": rates, "ratio": ratio}))  # noqa: T201
        return
    table = Table("", "images/s", "of the local rate", "asked for")
    near, far = (statistics.median(column) for column in zip(*rates, strict=True))
    table.add_row("local folder, page cache", f"{near:,.0f}", "", "")
    table.add_row("S3 on loopback, cold cache", f"{far:,.0f}", f"{ratio:.0%}", ">= 70 %")
    Console().print(table)


def upload(folder: Path) -> str:
    import s3fs

    store = s3fs.S3FileSystem()
    store.mkdir("bench")
    for path in sorted(folder.iterdir()):
        if path.is_file():
            store.put_file(str(path), f"bench/faces/{path.name}")
    return "s3://bench/faces"


def told(place: str, window: int) -> float:
    command = [sys.executable, __file__, place, "--one-pass", "--window", str(window)]
    return float(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )


def one_pass(place: str, window: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        config = Data(
            path=place,
            augment=(Flip(),),
            order=Shuffle(window_shards=window),
            cache_dir=f"{folder}/cache",
        )
        dataset = open_dataset(place, config)
        shards = dataset.manifest.shards
        if len({shard.sha256 for shard in shards}) < len(shards):
            raise SystemExit(
                f"{place}: some shards are the same, byte for byte, and would be fetched once"
            )
        first = sum(shard.samples for shard in shards[:window]) if len(shards) > window else 0
        steps = dataset.manifest.num_images // BATCH
        loader = Loader(
            dataset,
            config,
            seed=0,
            batch_size=BATCH,
            rank=0,
            world_size=1,
            position=0,
            end=steps * BATCH,
            device=torch.device("cpu"),
            quarantine=Quarantine(Path(folder) / "quarantine.jsonl", dataset, 0.0),
            decode_threads=2,
        )
        began, counted = 0.0, 0
        with loader:
            for step, _ in enumerate(loader):
                counted += BATCH if began else 0
                if not began and step * BATCH >= first:
                    began = time.perf_counter()
        return counted / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
