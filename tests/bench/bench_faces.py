"""The peer of configs/faces/small_cpu.yaml: a plain dense PyTorch loop on the same identity
folders, scored alike, over minutes.

    python tests/bench/bench_faces.py TRAIN_FOLDER PAIRS.bin [--minutes 10] [--run runs/first]

MobileFaceNet with torch's own PReLU, CosFace m=0.2 s=32, batch 128, SGD 0.1, float32, flips only.
With --run the loop is scored at the minutes of training at which that run was, and both are printed
side by side; train the run first, with `evaluation.pairs`.
"""

import argparse
import os
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet as MobileFaceNetConfig
from manyfaces.models.backbones.mobilefacenet import MobileFaceNet
from manyfaces.models.backbones.pixels import normalise
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.protocols.verification import Verification
from manyfaces.train.record import METRICS, read_rows

MARKS = (1.0, 3.0, 6.0, 10.0, 15.0, 20.0, 25.0, 30.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--run", type=Path)
    arguments = parser.parse_args()
    rows = (
        [
            r
            for r in read_rows(arguments.run / METRICS)
            if any(k.endswith("/best_accuracy") for k in r)
        ]
        if arguments.run
        else []
    )
    runs = {
        r["minutes"]: next(v for k, v in r.items() if k.endswith("/best_accuracy"))
        for r in rows
        if r["minutes"] <= arguments.minutes
    }
    marks = sorted(runs) or [m for m in MARKS if m <= arguments.minutes]
    curve = plain_loop(arguments.folder, arguments.pairs, marks)
    table = Table(
        "minutes", "plain loop: images", "images/s", "best threshold", "the run: best threshold"
    )
    for mark, (minutes, images, accuracy) in zip(marks, curve, strict=True):
        ours = f"{runs[mark]:.2%}" if mark in runs else ""
        table.add_row(
            f"{minutes:.1f}", f"{images:,}", f"{images / minutes / 60:.0f}", f"{accuracy:.2%}", ours
        )
    Console().print(table)


def plain_loop(
    folder: Path, pairs_path: Path, marks: list[float]
) -> list[tuple[float, int, float]]:
    """(minutes, images, accuracy at the best threshold) at each mark; evaluation is not counted."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    people = sorted(p for p in folder.iterdir() if p.is_dir())
    files = [
        (path, label)
        for label, person in enumerate(people)
        for path in sorted(person.glob("*.jpg"))
    ]
    decoded = [np.asarray(cv2.imread(str(path))) for path, _ in files]
    images = torch.from_numpy(np.stack(decoded)[..., ::-1].copy())
    labels = torch.tensor([label for _, label in files])
    protocol = Verification(str(pairs_path))
    model, centres = (
        _with_torch_prelu(MobileFaceNet()),
        nn.Parameter(torch.randn(len(people), 512) * 0.01),
    )
    optimizer = torch.optim.SGD(
        [*model.parameters(), centres], 0.1, momentum=0.9, weight_decay=5e-4
    )
    curve: list[tuple[float, int, float]] = []
    seconds, seen, order = 0.0, 0, torch.empty(0, dtype=torch.long)
    while len(curve) < len(marks):
        began = time.perf_counter()
        if len(order) < 128:
            order = torch.cat([order, torch.randperm(len(files))])
        chosen, order = order[:128], order[128:]
        flips = torch.rand(128, 1, 1, 1) < 0.5
        batch = torch.where(flips, images[chosen].flip(2), images[chosen])
        embeddings = model(normalise(batch)).embeddings["main"]
        cosines = F.linear(F.normalize(embeddings), F.normalize(centres))
        loss = F.cross_entropy(
            32 * (cosines - 0.2 * F.one_hot(labels[chosen], len(people))), labels[chosen]
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        seconds, seen = seconds + time.perf_counter() - began, seen + 128
        if seconds >= marks[len(curve)] * 60:
            embedder = Embedder(model, MobileFaceNetConfig(), (112, 112), torch.device("cpu"))
            best = evaluate(protocol, embedder).scalars["best_accuracy"]
            assert best is not None
            curve.append((seconds / 60, seen, best))
    return curve


def _with_torch_prelu(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        setattr(
            module,
            name,
            nn.PReLU(child.num_parameters)
            if isinstance(child, nn.PReLU)
            else _with_torch_prelu(child),
        )
    return module


if __name__ == "__main__":
    main()
