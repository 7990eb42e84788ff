"""An evaluation on a verification set of LFW's size, beside a plain one of batch 10.

    python tests/bench/bench_evaluate.py [--pairs 6000] [--images 7701] [--px 112] [--repeat 3]

A `.bin` of made faces with as many pairs and distinct images as LFW's (6,000 and 7,701) is scored
with a MobileFaceNet of made weights. The plain evaluation does what InsightFace's
`recognition/arcface_torch/eval/verification.py` does: it decodes every image of every pair one by
one, shows the network ten at a time and their mirror images in a second pass, adds both embeddings
and searches the threshold of each fold. `manyfaces evaluate` opens the file, embeds each distinct
image once by its own decoding, and scores by protocol `verification`. Both have all cores and the
same network with the same weights, which is ready before the clock starts, and take turns; both
print the same accuracy.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.sources.verification_bin import read_bin, write_bin
from manyfaces.data.store.samples import Stores
from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.output import as_output
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.protocols.verification import Verification

PLAIN_BATCH = 10
IMAGES_OF_ONE = 4
NUM_FOLDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--images", type=int, default=7701, help="distinct ones")
    parser.add_argument("--px", type=int, default=112)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "lfw_sized.bin"
        distinct = write_set(file, arguments.pairs, arguments.images)
        torch.manual_seed(0)
        settings = MobileFaceNet()
        hw = arguments.px, arguments.px
        encoder = Encoder(
            settings.build(image_hw=hw), settings, hw, torch.device("cpu"), autocast=False
        )
        plain, ours = [], []
        for _ in range(arguments.repeat):
            plain.append(timed(lambda: plain_accuracy(file, encoder.backbone, arguments.px)))
            ours.append(timed(lambda: own_accuracy(file, encoder)))
    tell(arguments.pairs, distinct, plain, ours)


def write_set(file: Path, num_pairs: int, num_images: int) -> int:
    """Write a set in which half of each fold's pairs are of one person; returns how many distinct
    images it has."""
    folder = file.parent / "faces"
    synthesise(folder, -(-num_images // IMAGES_OF_ONE), IMAGES_OF_ONE, seed=1)
    dataset = open_dataset(folder)
    people = dataset.labels(np.arange(num_images))
    random = np.random.default_rng(0)
    # Every image is in a pair: the left ones pass through all of them in random order.
    left = np.resize(random.permutation(num_images), num_pairs)
    right = np.empty_like(left)
    same = np.arange(num_pairs) % 2 == 0
    for number, image in enumerate(left):
        fits = np.flatnonzero((people == people[image]) == same[number])
        fits = fits[fits != image]
        right[number] = random.choice(fits) if len(fits) else (image + 1) % num_images
    blobs = [bytes(blob) for blob in Stores(dataset).read(np.stack([left, right], 1).ravel())]
    write_bin(file, blobs, same.tolist())
    return len(np.unique(np.concatenate([left, right])))


def timed(work: object) -> tuple[float, float]:
    """Seconds and the accuracy that came out."""
    assert callable(work)
    began = time.perf_counter()
    accuracy = work()
    return time.perf_counter() - began, accuracy


def own_accuracy(file: Path, encoder: Encoder) -> float:
    """The 10-fold accuracy by the house's own protocol."""
    result = evaluate(Verification(str(file)), Embedder.of(encoder, 200))
    accuracy = result.scalars["accuracy"]
    assert accuracy is not None
    return accuracy


@torch.no_grad()
def plain_accuracy(file: Path, backbone: nn.Module, px: int) -> float:
    """The same by a loop with batches of ten, both images of every pair embedded twice."""
    pairs = read_bin(file)
    decoded = np.empty((len(pairs.blobs), px, px, 3), np.uint8)
    for number, blob in enumerate(pairs.blobs):
        image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        decoded[number] = image if image.shape[0] == px else cv2.resize(image, (px, px))
    images_NCHW = torch.from_numpy(decoded).permute(0, 3, 1, 2)
    backbone.eval()
    passes = []
    for mirrored in (False, True):
        found = []
        for first in range(0, len(images_NCHW), PLAIN_BATCH):
            batch_NCHW = images_NCHW[first : first + PLAIN_BATCH].float().div(255).sub(0.5).div(0.5)
            batch_NCHW = batch_NCHW.flip(3) if mirrored else batch_NCHW
            found.append(as_output(backbone(batch_NCHW)).embeddings["main"])
        passes.append(torch.cat(found))
    embeddings_ND = nn.functional.normalize(passes[0] + passes[1]).double().numpy()
    distances_P = np.square(embeddings_ND[0::2] - embeddings_ND[1::2]).sum(1)
    return ten_fold(distances_P, np.asarray(pairs.same))


def ten_fold(distances_P: NDArray[np.float64], same_P: NDArray[np.bool_]) -> float:
    """The mean over ten folds, each with the threshold that is best on the others."""
    thresholds = np.arange(0, 4, 0.01)
    accuracies = []
    for fold in np.array_split(np.arange(len(same_P)), NUM_FOLDS):
        others = np.setdiff1d(np.arange(len(same_P)), fold)
        scores = [((distances_P[others] < t) == same_P[others]).mean() for t in thresholds]
        best = thresholds[int(np.argmax(scores))]
        accuracies.append(((distances_P[fold] < best) == same_P[fold]).mean())
    return float(np.mean(accuracies))


def tell(
    num_pairs: int, distinct: int, plain: list[tuple[float, float]], ours: list[tuple[float, float]]
) -> None:
    """Print both times, the median of the rounds' ratios and both accuracies."""
    ratios = [before / after for (before, _), (after, _) in zip(plain, ours, strict=True)]
    table = Table("", "seconds", "times as fast", "accuracy (10-fold)")
    for name, rounds, ratio in (
        (f"plain, batch {PLAIN_BATCH}", plain, 1.0),
        ("manyfaces evaluate", ours, statistics.median(ratios)),
    ):
        seconds = statistics.median(each for each, _ in rounds)
        table.add_row(name, f"{seconds:.1f}", f"{ratio:.2f}", f"{rounds[0][1]:.4%}")
    console = Console()
    told = f"{num_pairs:,} pairs of {2 * num_pairs:,} images, {distinct:,} of them distinct"
    console.print(f"{told}; {torch.get_num_threads()} threads, {len(plain)} rounds")
    console.print(table)


if __name__ == "__main__":
    main()
