"""The input path beside what else there is: images a second of shuffled uint8 RGB batches with
flips, on two cores; a resume.

    python tests/bench/bench_data.py IMAGE_FOLDER [--work FOLDER] [--batch 256] [--repeat 5]
    [--streaming-python PATH] [--json]

IMAGE_FOLDER holds a folder an identity (here ../shared/faces/train); it is converted once by
`manyfaces data convert` into FOLDER and its shards are repeated there. Every contender lives in a
process of its own; they are measured in turn, `--repeat` times round, and the median counts,
because other work on the machine comes and goes. All read from the page cache. MosaicML streaming
needs another numpy: make it an environment of its own (`pip install mosaicml-streaming`) and give
its python.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

COPIES, SHARD_IMAGES, CORES, PX = 8, 1024, 2, 112
WARM_BATCHES, BATCHES = 12, 80
FAR, SKIPS = 100_000_000, (10_000, 20_000, 40_000)
LONG, REPEATS = "long", 182  # the same images in epochs of ten million
STREAMING = "MosaicML streaming"
MANYFACES, FLOATS, LAST = "manyfaces", "manyfaces, floats", "manyfaces, floats, channels last"

# (contender, ours beside it, least ratio asked for)
RATES: list[tuple[str, str, float | None]] = [
    ("image folder + PIL + DataLoader", MANYFACES, 3.5),
    ("webdataset + PIL + WebLoader", MANYFACES, 5.0),
    ("DALI readers.webdataset", MANYFACES, 1.2),
    ("DALI bare decode, in memory", MANYFACES, 0.95),
    ("DALI bare decode + flip, in memory", MANYFACES, None),
    ("simplejpeg, in memory, no batch", MANYFACES, None),
    ("DALI crop_mirror_normalize", FLOATS, 1.4),
    ("DALI crop_mirror_normalize, channels last", LAST, None),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "bench_data")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--streaming-python", type=Path, metavar="PATH", help="a python that has mosaicml-streaming"
    )
    parser.add_argument("--only", help="contenders whose names hold this word, and ours")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(1)
    shards = arguments.work / "shards"
    if arguments.worker:
        work(arguments.worker, arguments.images, shards, arguments.batch)
        return
    prepare(arguments.images, shards)
    if arguments.streaming_python:
        prepare_long(shards, arguments.work / LONG)
    theirs = [row for row in RATES if not arguments.only or arguments.only in row[0]]
    names = list(dict.fromkeys([name for row in theirs for name in (row[1], row[0])] + ["resume"]))
    rounds = take_turns(names, arguments)
    if arguments.json:
        print(json.dumps(rounds))  # noqa: T201
        return
    show(rounds, theirs, arguments)


def prepare(images: Path, shards: Path) -> None:
    """The dataset, once: converted, each shard repeated, indexed."""
    if (shards / "manyfaces.json").exists():
        return
    manyfaces = [sys.executable, "-m", "manyfaces.train", "data"]
    subprocess.run(
        [*manyfaces, "convert", str(images), str(shards), "--shard-images", str(SHARD_IMAGES)],
        check=True,
        stdout=sys.stderr,
    )
    for shard, copy in itertools.product(sorted(shards.glob("*.tar")), range(1, COPIES)):
        shutil.copy(shard, shards / f"{shard.stem}-copy{copy}.tar")
    subprocess.run([*manyfaces, "index", str(shards)], check=True, stdout=sys.stderr)


def prepare_long(shards: Path, long: Path) -> None:
    """The same shards many times over, as an index alone, once."""
    from manyfaces.data.dataset.dataset import open_part
    from manyfaces.data.dataset.index import COLUMNS, write_index
    from manyfaces.data.dataset.manifest import MANIFEST, Shard

    if (long / MANIFEST).exists():
        return
    long.mkdir(exist_ok=True)
    dataset = open_part(shards)
    columns = {name: np.tile(getattr(dataset, f"{name}_N"), REPEATS) for name in COLUMNS}
    columns["shard"] += np.repeat(np.arange(REPEATS), dataset.manifest.num_images).astype(
        np.uint32
    ) * len(dataset.manifest.shards)
    own = [
        Shard(f"../{shards.name}/{s.name}", s.bytes, s.samples, s.sha256)
        for s in dataset.manifest.shards
    ]
    facts = {
        "num_identities": dataset.manifest.num_identities,
        "image_px": dataset.manifest.image_px,
    }
    write_index(long, columns, own * REPEATS, **facts)


def take_turns(
    names: list[str], arguments: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """What each contender said each round; nothing of those that cannot run here."""
    words = [
        sys.executable,
        __file__,
        str(arguments.images),
        "--work",
        str(arguments.work),
        "--batch",
        str(arguments.batch),
        "--worker",
    ]
    commands = {name: [*words, name] for name in names}
    if arguments.streaming_python:
        script = Path(__file__).with_name("streaming_resume.py")
        given = (
            arguments.streaming_python,
            script,
            arguments.images,
            arguments.work,
            arguments.batch,
            FAR,
        )
        commands[STREAMING] = [str(word) for word in given]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    workers = {
        n: subprocess.Popen(c, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n, c in commands.items()
    }
    waiting = {
        name: worker
        for name, worker in workers.items()
        if worker.stdout and worker.stdout.readline().strip() == "ready"
    }
    for _ in range(arguments.repeat):
        for name, worker in waiting.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            rounds[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.kill()
        worker.wait()
    return rounds


def work(name: str, images: Path, shards: Path, batch: int) -> None:
    """One contender: says "ready", and measures each time it is told to."""
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    try:
        measure = (
            resume(shards, batch)
            if name == "resume"
            else rate(CONTENDERS[name](images, shards, batch), batch)
        )
    except ImportError:
        print("not installed", file=out, flush=True)
        return
    print("ready", file=out, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=out, flush=True)
    os._exit(0)  # some of their threads and processes do not end by themselves


def rate(stream: Iterator[object], batch: int) -> Callable[[], dict[str, float]]:
    def measure() -> dict[str, float]:
        for _ in range(WARM_BATCHES):  # also what was made ahead while others had their turn
            next(stream)
        began, cpu = time.perf_counter(), sum(os.times()[:4])
        for _ in range(BATCHES):
            next(stream)
        took = time.perf_counter() - began
        return {
            "images/s": BATCHES * batch / took,
            "cpu us an image": 1e6 * (sum(os.times()[:4]) - cpu) / (BATCHES * batch),
        }

    measure()
    return measure


def manyfaces(
    images: Path, shards: Path, batch: int, position: int = 0
) -> Generator[torch.Tensor, None, None]:
    from manyfaces.configs.schema import Data
    from manyfaces.data.dataset.dataset import open_dataset
    from manyfaces.data.feed.loader import Loader
    from manyfaces.data.feed.quarantine import Quarantine

    dataset = open_dataset(shards)
    config = Data()
    quarantine = Quarantine(Path(tempfile.mkdtemp()) / "quarantine.jsonl", dataset, 0.0)
    loader = Loader(
        dataset,
        config,
        seed=0,
        batch_size=batch,
        rank=0,
        world_size=1,
        position=position,
        end=2**62,
        device=torch.device("cpu"),
        quarantine=quarantine,
        decode_threads=CORES,
    )
    with loader:
        for item in loader:
            yield item.images["main"]


def manyfaces_floats(
    images: Path, shards: Path, batch: int, layout: torch.memory_format = torch.contiguous_format
) -> Iterator[object]:
    from manyfaces.models.backbones.pixels import normalise

    floats_NCHW = None  # used again for each batch, as a train loop can
    for images_NHWC in manyfaces(images, shards, batch):
        floats_NCHW = normalise(images_NHWC, memory_format=layout, out=floats_NCHW)
        yield floats_NCHW


def manyfaces_floats_last(images: Path, shards: Path, batch: int) -> Iterator[object]:
    return manyfaces_floats(images, shards, batch, torch.channels_last)


class ImageFolder(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, folder: Path, copies: int) -> None:
        self.files = [str(p) for p in sorted(folder.rglob("*.jpg"))]
        self.copies = copies

    def __len__(self) -> int:
        return len(self.files) * self.copies

    def __getitem__(self, number: int) -> torch.Tensor:
        from PIL import Image

        with Image.open(self.files[number % len(self.files)]) as image:
            return flipped(np.asarray(image.convert("RGB")))


def flipped(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(
        np.ascontiguousarray(pixels[:, ::-1]) if np.random.random() < 0.5 else pixels.copy()
    )


def image_folder(images: Path, shards: Path, batch: int) -> Iterator[object]:
    # One long epoch: a DataLoader stands still at the end of each.
    loader = torch.utils.data.DataLoader(
        ImageFolder(images, 400), batch, shuffle=True, num_workers=CORES, drop_last=True
    )
    return iter(loader)


def webdataset_pil(images: Path, shards: Path, batch: int) -> Iterator[object]:
    import webdataset

    urls = [str(p) for p in sorted(shards.glob("*.tar"))]
    samples = (
        webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(5000).decode("rgb8")
    )
    batches = samples.to_tuple("jpg", "cls").map_tuple(flipped, int).batched(batch)
    return iter(webdataset.WebLoader(batches, batch_size=None, num_workers=CORES))


def dali(build: Callable[[], object], batch: int, torch_out: bool = True) -> Iterator[object]:
    """A pipeline with DALI's own settings, two threads; its batches as torch tensors by DALI's own
    iterator."""
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    pipeline = Pipeline(batch, CORES, None)
    with pipeline:
        pipeline.set_outputs(build())
    pipeline.build()
    if torch_out:
        yield from DALIGenericIterator([pipeline], ["images"])
    while True:
        yield pipeline.run()


def dali_reader(shards: Path) -> object:
    from nvidia.dali import fn, types

    paths = [str(p) for p in sorted(shards.glob("*.tar"))]
    jpegs = fn.readers.webdataset(
        paths=paths, ext=["jpg"], random_shuffle=True, initial_fill=5000, name="reader"
    )
    return fn.decoders.image(jpegs, output_type=types.RGB)


def dali_webdataset(images: Path, shards: Path, batch: int) -> Iterator[object]:
    from nvidia.dali import fn

    return dali(lambda: fn.flip(dali_reader(shards), horizontal=fn.random.coin_flip()), batch)


def dali_floats(images: Path, shards: Path, batch: int, layout: str = "CHW") -> Iterator[object]:
    from nvidia.dali import fn, types

    def build() -> object:
        return fn.crop_mirror_normalize(
            dali_reader(shards),
            dtype=types.FLOAT,
            output_layout=layout,
            mean=[127.5] * 3,
            std=[127.5] * 3,
            mirror=fn.random.coin_flip(),
        )

    return dali(build, batch)


def dali_floats_last(images: Path, shards: Path, batch: int) -> Iterator[object]:
    return dali_floats(images, shards, batch, "HWC")


def in_memory(images: Path) -> list[np.ndarray]:
    return [np.fromfile(p, np.uint8) for p in sorted(images.rglob("*.jpg"))]


def dali_bare(images: Path, shards: Path, batch: int, flip: bool = False) -> Iterator[object]:
    """The upper bound: whole lists of bytes, cut into batches beforehand, and nobody takes the
    images out."""
    from nvidia.dali import fn, types

    blobs = in_memory(images)
    source = itertools.cycle(
        [blobs[n : n + batch] for n in range(0, len(blobs) - batch + 1, batch)]
    )

    def build() -> object:
        decoded = fn.decoders.image(
            fn.external_source(source=source, dtype=types.UINT8, ndim=1, no_copy=True),
            output_type=types.RGB,
        )
        return fn.flip(decoded, horizontal=fn.random.coin_flip()) if flip else decoded

    return dali(build, batch, torch_out=False)


def dali_bare_flip(images: Path, shards: Path, batch: int) -> Iterator[object]:
    return dali_bare(images, shards, batch, flip=True)


def simplejpeg_raw(images: Path, shards: Path, batch: int) -> Iterator[object]:
    """libjpeg-turbo in two threads, each image to memory of its own."""
    from concurrent.futures import ThreadPoolExecutor

    import simplejpeg

    blobs = [blob.tobytes() for blob in in_memory(images)]
    halves = itertools.cycle(
        [blobs[n : n + batch // CORES] for n in range(0, len(blobs) - batch, batch // CORES)]
    )

    def some(part: list[bytes]) -> None:
        for blob in part:
            simplejpeg.decode_jpeg(blob)

    def stream() -> Iterator[object]:
        with ThreadPoolExecutor(CORES) as pool:
            while True:
                yield list(pool.map(some, [next(halves) for _ in range(CORES)]))

    return stream()


CONTENDERS: dict[str, Callable[[Path, Path, int], Iterator[object]]] = {
    MANYFACES: manyfaces,
    FLOATS: manyfaces_floats,
    LAST: manyfaces_floats_last,
    "image folder + PIL + DataLoader": image_folder,
    "webdataset + PIL + WebLoader": webdataset_pil,
    "DALI readers.webdataset": dali_webdataset,
    "DALI bare decode, in memory": dali_bare,
    "DALI bare decode + flip, in memory": dali_bare_flip,
    "simplejpeg, in memory, no batch": simplejpeg_raw,
    "DALI crop_mirror_normalize": dali_floats,
    "DALI crop_mirror_normalize, channels last": dali_floats_last,
}


def resume(shards: Path, batch: int) -> Callable[[], dict[str, float]]:
    """Seconds to the first batch at two positions; and of webdataset's way there, reading and
    dropping samples (not decoded)."""
    import webdataset

    urls = [str(p) for p in sorted(shards.glob("*.tar"))]

    def first(position: int, folder: Path = shards) -> float:
        began = time.perf_counter()
        stream = manyfaces(folder, folder, batch, position)
        next(stream)
        took = time.perf_counter() - began
        stream.close()
        return took

    def skip(count: int) -> float:
        began = time.perf_counter()
        next(
            itertools.islice(
                iter(webdataset.WebDataset(urls, resampled=True, shardshuffle=False)), count, None
            )
        )
        return time.perf_counter() - began

    def measure() -> dict[str, float]:
        first(batch)  # whichever comes first in a turn pays for what others left in the caches
        long = {LONG: first(FAR, shards.with_name(LONG))} if shards.with_name(LONG).exists() else {}
        return {
            **{str(n): first(n) for n in (0, FAR)},
            **long,
            **{f"skip {n}": skip(n) for n in SKIPS},
        }

    measure()
    return measure


def show(
    rounds: dict[str, list[dict[str, float]]],
    theirs: list[tuple[str, str, float | None]],
    arguments: argparse.Namespace,
) -> None:
    table = Table("", "images/s", "least to most", "CPU µs an image", "ours is", "asked for")
    ours_shown: set[str] = set()
    for name, ours, target in theirs:
        for one in (ours, name):
            if one in ours_shown or not rounds[one]:
                continue
            ours_shown.add(one)
            rates, cpu = (
                sorted(r[key] for r in rounds[one]) for key in ("images/s", "cpu us an image")
            )
            cells = [f"{statistics.median(rates):,.0f}", f"{rates[0]:,.0f} to {rates[-1]:,.0f}"]
            # The CPU time of workers is not seen from here before they end.
            cells.append(f"{statistics.median(cpu):.1f}" if "Loader" not in one else "")
            if one == name:
                # Rounds are compared with each other, so that a busy minute hits both.
                pairs = zip(rounds[ours], rounds[name], strict=True)
                ratio = statistics.median(a["images/s"] / b["images/s"] for a, b in pairs)
                cells += [f"{ratio:.2f} x", f">= {target} x" if target else ""]
            table.add_row(one, *cells)
        if not rounds[name]:
            table.add_row(name, "not installed")
    console = Console()
    console.print(table)
    resumed = {
        key: statistics.median(r[key] for r in rounds["resume"]) for key in rounds["resume"][0]
    }
    slope = np.polyfit(SKIPS, [resumed[f"skip {n}"] for n in SKIPS], 1)[0]
    ratio = statistics.median(r[str(FAR)] / r["0"] for r in rounds["resume"])
    table = Table("resume: to the first batch", "seconds", "")
    table.add_row("manyfaces at position 0", f"{resumed['0']:.3f}", "")
    table.add_row(
        f"manyfaces at position {FAR:,}",
        f"{resumed[str(FAR)]:.3f}",
        f"{ratio:.2f} x of position 0 (asked for: <= 1.1 x)",
    )
    for n in SKIPS:
        table.add_row(
            f"webdataset, skipping to {n:,}",
            f"{resumed[f'skip {n}']:.3f}",
            "samples read and dropped, not decoded",
        )
    far = slope * FAR
    table.add_row(
        f"webdataset, skipping to {FAR:,}",
        f"{far:,.0f}",
        f"EXTRAPOLATED from the above; {far / resumed[str(FAR)]:,.0f} x ours",
    )
    for epoch, ours in (("shards", str(FAR)), (LONG, LONG)) if rounds.get(STREAMING) else ():
        pairs = zip(rounds["resume"], rounds[STREAMING], strict=True)
        ratio = statistics.median(theirs[epoch] / mine[ours] for mine, theirs in pairs)
        took = statistics.median(theirs[epoch] for theirs in rounds[STREAMING])
        what = f"ours {resumed[ours]:.3f}: {ratio:.1f} x faster (asked for: >= 2 x)"
        table.add_row(
            f"{STREAMING} there" + ", epochs of ten million" * (epoch == LONG), f"{took:.3f}", what
        )
    if not rounds.get(STREAMING):
        why = (
            "it does not run there"
            if arguments.streaming_python
            else "it needs another numpy: give --streaming-python"
        )
        table.add_row(STREAMING, "not run", why)
    console.print(table)
    console.print(
        f"batches of {arguments.batch}, {CORES} cores, median of {arguments.repeat} rounds of "
        f"{BATCHES} batches, in page cache"
    )


if __name__ == "__main__":
    main()
