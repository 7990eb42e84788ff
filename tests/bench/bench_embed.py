"""`manyfaces embed` beside the backbone alone, images a second, in turn on the same machine.

    python tests/bench/bench_embed.py [--images 4000] [--batch 128] [--repeat 3] [--px 112]

A MobileFaceNet with made weights embeds a made dataset. The backbone alone gets one decoded batch
again and again, as many times as the dataset has batches; `manyfaces embed` reads, decodes, embeds
and writes its parts. Both have all cores, and the median of the rounds counts. How long 100,000
images would take is extrapolated from that rate, and printed as such.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from manyfaces.cluster.group import joined
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.schema import Cluster
from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.embedding.embed import Request, prepare
from manyfaces.train.embedding.facts import Options
from manyfaces.train.embedding.worker import work
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.exported import write_exported

MANY = 100_000
IMAGES_OF_ONE = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--px", type=int, default=112)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder, exported = make_network(folder, arguments.px)
        dataset = folder / "dataset"
        identities = max(arguments.images // IMAGES_OF_ONE, 1)
        manifest = synthesise(dataset, identities, IMAGES_OF_ONE, seed=1)
        images = manifest.num_images
        alone, whole = [], []
        for number in range(arguments.repeat):
            alone.append(images / backbone_seconds(encoder, images, arguments.batch))
            out = folder / f"out-{number}"
            request = Request(
                model=str(exported),
                words=(str(dataset),),
                out=out,
                options=Options(),
                cluster=Cluster(launcher="process", workers=1, threads_per_worker=cores),
                batch_size=arguments.batch,
            )
            whole.append(images / embed_seconds(request))
    tell(images, statistics.median(alone), statistics.median(whole))


def make_network(folder: Path, px: int) -> tuple[Encoder, Path]:
    """A network with made weights, and the file that it was exported to."""
    torch.manual_seed(0)
    settings = MobileFaceNet()
    backbone = settings.build(image_hw=(px, px))
    encoder = Encoder(backbone, settings, (px, px), torch.device("cpu"), autocast=False)
    exported = folder / "network.safetensors"
    write_exported(encoder, exported, "a benchmark")
    return encoder, exported


def backbone_seconds(encoder: Encoder, images: int, batch_size: int) -> float:
    """How long the network alone takes for so many images, decoded before."""
    embedder = Embedder.of(encoder, batch_size)
    batch_NHWC = torch.randint(0, 256, (batch_size, *encoder.image_hw, 3), dtype=torch.uint8)
    embedder.embed_pixels(batch_NHWC)
    began, left = time.perf_counter(), images
    while left > 0:
        embedder.embed_pixels(batch_NHWC[:left])
        left -= batch_size
    return time.perf_counter() - began


def embed_seconds(request: Request) -> float:
    """How long a rank takes from its first read to its last part, the network opened before."""
    with joined(request.cluster), contextlib.ExitStack() as held:
        share = prepare(request, Console(quiet=True), held)
        began = time.perf_counter()
        work(share.model_dump())
        seconds = time.perf_counter() - began
        assert request.job.fault() is None, request.job.fault()
        assert not request.job.missing(request.job.plan())
    return seconds


def tell(images: int, alone: float, whole: float) -> None:
    """Print both rates and their ratio."""
    table = Table("", "images/s", "ratio", f"{MANY:,} images, extrapolated")
    table.add_row("backbone alone", f"{alone:,.1f}", "1.00", f"{MANY / alone / 60:.1f} min")
    ratio = f"{whole / alone:.3f}"
    table.add_row("manyfaces embed", f"{whole:,.1f}", ratio, f"{MANY / whole / 60:.1f} min")
    console = Console()
    console.print(f"{images:,} made images, {torch.get_num_threads()} threads")
    console.print(table)


if __name__ == "__main__":
    main()
