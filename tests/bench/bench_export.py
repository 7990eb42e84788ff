"""Images a second of an exported network, by what runs it: eager torch, a torch.export program, and
onnxruntime in float32, float16 and int8.

    python tests/bench/bench_export.py [--from RUN | --kind mobilefacenet] [--px 112] [--rounds 5]

One network, on 1 and 2 threads, an image at a time and 32 at a time. Without `--from` its weights
are random, and int8 is calibrated on made faces; the rates do not depend on either. The best of the
rounds counts, each of at least a second; the variants take turns. Prints a table with the ratio to
eager torch on as many threads.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from manyfaces.configs.schema import Config
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.cli.output import say
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.exported import facts_of
from manyfaces.train.exporters.exporter import Job, exporter_of
from manyfaces.train.exporters.faces import own_faces

CPU = torch.device("cpu")
VARIANTS = ("eager torch", "torch.export", "onnx float32", "onnx float16", "onnx int8")
SECONDS, CALIBRATION = 1.0, 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="run", type=Path)
    parser.add_argument("--kind", default="mobilefacenet")
    parser.add_argument("--px", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.run is not None:
        encoder = open_encoder(arguments.run, CPU)
    else:
        model = Config.model_validate({"model": {"kind": arguments.kind}}).model
        image_hw = (arguments.px, arguments.px)
        encoder = Encoder(model.build(image_hw=image_hw), model, image_hw, CPU, autocast=False)
    with tempfile.TemporaryDirectory(prefix="manyfaces-bench-") as folder:
        files = written(encoder, Path(folder))
        say(f"{encoder.model.word()} at {encoder.image_hw[0]} px, images/s")
        say(f"{'threads':>7} {'images':>6}  " + "  ".join(f"{each:>18}" for each in VARIANTS))
        for threads, count in itertools.product((1, 2), (1, 32)):
            rates = measured(encoder, files, threads, count, arguments.rounds)
            cells = [f"{rate:9.1f} ({rate / rates[0]:5.2f} x)" for rate in rates]
            say(f"{threads:>7} {count:>6}  " + "  ".join(f"{cell:>18}" for cell in cells))


def written(encoder: Encoder, folder: Path) -> dict[str, tuple[Path, Job]]:
    """The exported files, by variant."""
    faces = own_faces(None, CALIBRATION, encoder.image_hw).images_NHWC
    files = {}
    for variant in VARIANTS[1:]:
        word, _, precision = variant.partition(" ")
        exporter = exporter_of("torch_export" if word == "torch.export" else word, None)
        facts = facts_of(encoder, "a bench", precision or "float32")  # type: ignore[arg-type]
        job = Job(encoder, facts, faces)
        file = folder / f"{precision or 'program'}{exporter.ending}"
        exporter.write(job, file)
        files[variant] = file, job
    return files


def measured(
    encoder: Encoder, files: dict[str, tuple[Path, Job]], threads: int, count: int, rounds: int
) -> list[float]:
    """Images a second of each variant, eager torch first."""
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    images_NHWC = torch.from_numpy(rng.integers(0, 256, (count, *encoder.image_hw, 3), np.uint8))
    encoders = [encoder]
    for variant, (file, job) in files.items():
        exporter = exporter_of("torch_export" if variant == "torch.export" else "onnx", None)
        encoders.append(exporter.opened(job, file, CPU))
    best = [0.0] * len(encoders)
    for _ in range(rounds):
        for number, each in enumerate(encoders):
            best[number] = max(best[number], rate(partial(each.embed, images_NHWC), count))
    return best


def rate(work: Callable[[], object], count: int) -> float:
    """Images a second, over at least `SECONDS`."""
    work()
    begun, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - begun) < SECONDS or done == 0:
        work()
        done += count
    return done / taken


if __name__ == "__main__":
    main()
