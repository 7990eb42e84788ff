"""What class centres learn in 32, 16 and 8 bits.

    python tests/bench/bench_row_bytes.py [--classes 4000] [--dim 512] [--epochs 12] [--seeds 3]

The embeddings are made: each class has a direction, and an image of it is the direction with noise.
They stay as they are, so that only the class centres (rows) learn: an ArcFace head with row-wise
SGD, the same batches for each type. Told are the bytes of a class, the loss over the last epoch,
the mean cosine of a centre with its class's direction, and how many new images are nearest to their
own centre; mean and spread over seeds.
"""

import argparse
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from manyfaces.configs import schema
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.models.head.partial_fc import PartialFC

BATCH = 512
IMAGES_OF_ONE = 4
"""Images of a class in an epoch."""
NOISE = 1.0
"""Length of the noise; a direction has 1."""
Dtype = Literal["float32", "bfloat16", "float16", "float8"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16", "float8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=4000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.1)
    given = parser.parse_args()
    table = Table("rows", "bytes a class", "loss", "cosine with the direction", "nearest is own")
    for dtype in DTYPES:
        found = np.array([learnt(dtype, given, seed) for seed in range(given.seeds)])
        cells = [
            f"{mean:.4f} ± {spread:.4f}"
            for mean, spread in zip(found[:, 1:].mean(0), found[:, 1:].std(0), strict=True)
        ]
        table.add_row(f"rowwise {dtype}", f"{found[0, 0]:.0f}", *cells)
    console = Console()
    console.print(f"{given.classes:,} classes, {given.epochs} epochs, {given.seeds} seeds")
    console.print(table)


def learnt(dtype: Dtype, given: argparse.Namespace, seed: int) -> tuple[float, ...]:
    """Bytes of a class, loss, cosine and accuracy of one run."""
    random = torch.Generator().manual_seed(seed)
    directions_CD = F.normalize(torch.randn(given.classes, given.dim, generator=random))
    head = PartialFC(
        schema.Head(
            margin=ArcFace(m=0.3),
            scale=32,
            rows=schema.Rows(optimizer="rowwise", dtype=dtype),
            logits="store16",
        ),
        given.classes,
        given.dim,
        seed=seed,
        weight_decay=5e-4,
        device=torch.device("cpu"),
    )
    steps = given.epochs * IMAGES_OF_ONE * given.classes // BATCH
    last = IMAGES_OF_ONE * given.classes // BATCH
    losses = []
    for step in range(steps):
        labels_B = torch.randint(given.classes, (BATCH,), generator=random)
        made = head.step(
            images_of(directions_CD, labels_B, random),
            labels_B,
            lr=given.lr * (1 - step / steps) ** 2,
            position=step * BATCH,
            batch_size=BATCH,
        )
        losses.append(float(made.loss))
    tensors = head.tensors()
    num_bytes = sum(tensor.nbytes for tensor in tensors.values()) / given.classes
    rows_CD = F.normalize(tensors["rows"].float())
    cosine = float((rows_CD * directions_CD).sum(1).mean())
    labels_B = torch.arange(given.classes)
    nearest_B = (images_of(directions_CD, labels_B, random) @ rows_CD.T).argmax(1)
    own = float((nearest_B == labels_B).float().mean())
    return num_bytes, float(np.mean(losses[-last:])), cosine, own


def images_of(directions_CD: Tensor, labels_B: Tensor, random: torch.Generator) -> Tensor:
    """Embeddings of images of these classes."""
    noise_BD = torch.randn(len(labels_B), directions_CD.shape[1], generator=random)
    return directions_CD[labels_B] + NOISE * F.normalize(noise_BD)


if __name__ == "__main__":
    main()
