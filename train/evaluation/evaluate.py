"""Verification of a backbone: embeddings of every pair (image and mirror image), metrics, plots."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from manyfaces.configs.schema import Config, UserError
from manyfaces.data.dataset.index import write_atomic
from manyfaces.data.feed.decode import Decoder
from manyfaces.data.sources.pairs import Pairs, read_bin
from manyfaces.models.backbones.backbone import build, normalise
from manyfaces.train.checkpoint.checkpoint import chosen, read_backbone, read_state
from manyfaces.train.evaluation.metrics import Report, cosine_scores, report, roc


@dataclass(frozen=True)
class Evaluated:
    """One verification set's outcome."""

    name: str
    report: Report
    scores: NDArray[np.float64]
    same: NDArray[np.bool_]


@torch.no_grad()
def evaluate(
    backbone: nn.Module,
    pairs: Pairs,
    *,
    image_px: int,
    batch_size: int,
    device: torch.device,
    autocast: bool = False,
    progress: Callable[[int], None] = lambda images: None,
) -> Evaluated:
    """Score the pairs; the ranks of a process group share the work and all get the outcome. Raises
    `UserError` for a broken image.

    An embedding is the sum of the image's and its mirror image's, as InsightFace's protocol has it.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    lo, hi = (r * len(pairs.blobs) // world_size for r in (rank, rank + 1))
    was_training = backbone.training
    backbone.eval()
    decode = Decoder(image_px, batch_size, device=device)
    parts: list[NDArray[np.float32]] = []
    fault = None
    for start in range(lo, hi, batch_size):
        images, good = decode(pairs.blobs[start : min(start + batch_size, hi)])
        if (
            not good.all()
        ):  # told to all ranks below: one that raised alone would leave the others waiting
            fault = (
                f"{pairs.name}: image {start + int(np.argmin(good))} is not a whole, decodable "
                "JPEG; use an intact copy of the set"
            )
            break
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            both: Tensor = (
                backbone(normalise(images)).float() + backbone(normalise(images.flip(2))).float()
            )
        parts.append(both.cpu().numpy())
        progress(len(images))
    backbone.train(was_training)
    gathered: list[Any] = [(parts, fault)] * world_size
    if world_size > 1:
        dist.all_gather_object(gathered, (parts, fault))
    for _, told in gathered:
        if told:
            raise UserError(told)
    scores = cosine_scores(np.concatenate([part for shares, _ in gathered for part in shares]))
    return Evaluated(pairs.name, report(scores, pairs.same), scores, pairs.same)


def open_trained(run: Path) -> tuple[Path, Config, nn.Module, torch.device]:
    """A run's newest committed checkpoint, or the checkpoint folder given: its path, and what
    `load_trained` gives. Raises `UserError`."""
    checkpoint = chosen(run)
    return checkpoint, *load_trained(checkpoint)


def load_trained(checkpoint: Path) -> tuple[Config, nn.Module, torch.device]:
    """Configuration, and the backbone on this machine's device, all of whose cores torch may
    use."""
    config = Config.model_validate(read_state(checkpoint)["config"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(os.cpu_count() or 1)
    backbone = build(config.model, config.data.image_px)
    backbone.load_state_dict(read_backbone(checkpoint))
    return config, backbone.to(device), device


def evaluate_run(
    run: Path, sets: list[Path], batch_size: int, progress: Callable[[int, int], None]
) -> tuple[Path, list[Evaluated]]:
    """Evaluate a run's newest committed checkpoint, or the checkpoint folder given, on this
    machine; writes into its `evaluation/`.

    `progress(done, total)` counts images. Returns the checkpoint and the outcomes. Raises
    `UserError`.
    """
    loaded = [read_bin(path) for path in sets]
    checkpoint, config, backbone, device = open_trained(run)
    done, total = 0, sum(len(pairs.blobs) for pairs in loaded)

    def count(images: int) -> None:
        nonlocal done
        done += images
        progress(done, total)

    autocast = config.train.precision == "bfloat16"
    outcomes = [
        evaluate(
            backbone,
            p,
            image_px=config.data.image_px,
            batch_size=batch_size,
            device=device,
            autocast=autocast,
            progress=count,
        )
        for p in loaded
    ]
    home = checkpoint.parent.parent
    save(outcomes, home / "evaluation", read_state(checkpoint)["step"])
    return checkpoint, outcomes


def save(evaluated: list[Evaluated], folder: Path, step: int) -> list[Path]:
    """Write `evaluation.json` and, per set, the ROC and the score histogram as PNG; returns the
    files."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = folder / "evaluation.json"
    write_atomic(
        summary,
        json.dumps(
            {"step": step, "sets": {e.name: e.report._asdict() for e in evaluated}}, indent=1
        ),
    )
    return [
        summary,
        *(path for e in evaluated for path in (_plot_roc(e, folder), _plot_scores(e, folder))),
    ]


def _plot_roc(e: Evaluated, folder: Path) -> Path:
    figure, axes = _figure(
        f"{e.name}: ROC" + (f", AUC {e.report.auc:.3f}" if e.report.auc is not None else ""),
        "false accept rate",
        "true accept rate",
    )
    far, tar = roc(e.scores, e.same)
    axes.plot(far.clip(0.5 / max((~e.same).sum(), 1)), tar)
    axes.set_xscale("log")
    return _save(figure, folder / f"roc-{e.name}.png")


def _plot_scores(e: Evaluated, folder: Path) -> Path:
    figure, axes = _figure(
        f"{e.name}: {e.report.accuracy:.1%} (10-fold)", "cosine of the pair", "pairs"
    )
    axes.hist(
        [e.scores[e.same], e.scores[~e.same]],
        bins=40,
        label=["same identity", "different"],
        histtype="stepfilled",
        alpha=0.6,
    )
    axes.legend()
    return _save(figure, folder / f"scores-{e.name}.png")


def plot_curves(metrics: list[dict[str, float]], folder: Path) -> list[Path]:
    """Loss and accuracy of a run over minutes of training, as PNG."""
    files = []
    for key, label in (("train/loss", "loss"), ("accuracy", "verification accuracy (10-fold)")):
        names = sorted(
            {
                k
                for row in metrics
                for k in row
                if k == key or (key == "accuracy" and k.endswith("/accuracy"))
            }
        )
        if names:
            figure, axes = _figure(label, "minutes of training", label)
            for name in names:
                rows = [row for row in metrics if name in row]
                axes.plot(
                    [row["minutes"] for row in rows],
                    [row[name] for row in rows],
                    label=name,
                    marker="." if key == "accuracy" else "",
                )
            axes.legend()
            files.append(_save(figure, folder / f"{key.rpartition('/')[2]}.png"))
    return files


def _figure(title: str, x: str, y: str):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure, path: Path) -> Path:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
