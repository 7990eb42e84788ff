"""Folders of runs as a training leaves them, made without one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manyfaces.configs.load import dump
from manyfaces.configs.schema import Config
from manyfaces.train.evaluation.report import report_folder, save_results
from manyfaces.train.evaluation.result import Curve, Example, Histogram, Quantity, Result
from manyfaces.train.folder import RunFolder
from manyfaces.train.record import Record

STEPS = 40
QUANTITIES = (
    Quantity("accuracy", "accuracy (10-fold)", "10-fold"),
    Quantity("auc", "AUC", "AUC", ".4f"),
    Quantity("eer", "EER", "EER"),
    Quantity("threshold", "threshold", format=".3f"),
)
SHARES = ("data_wait", "forward", "head", "backward", "optimizer", "checkpoint", "evaluation")


def made_run(
    folder: Path,
    name: str = "first",
    *,
    data: Path | None = None,
    evaluated: bool = True,
    **settings: Any,
) -> RunFolder:
    """A run of 40 steps that was interrupted once at step 20; `settings` are sections of its
    configuration."""
    sections = {"run": {"name": name, "dir": str(folder)}, "data": {"path": str(data or "gone")}}
    config = Config.model_validate({**sections, "model": "vit", **settings})
    run = RunFolder.of(config)
    record = Record(run.path)
    run.config.write_text(dump(config))
    run.plan.write_text("dataset: a few images\n")
    start = {"world_size": 2, "devices": {"CPU": 2}, "versions": {"torch": "2.13.0"}}
    record.event("start", "a fresh start", step=0, **start)
    record.event("interrupted", "stopped by Ctrl-C")
    record.event("start", "resuming", step=20, **start)
    rng = np.random.default_rng(len(name))
    for step in range(1, STEPS + 1):
        record.metrics(step, **_measured(step, rng))
        if evaluated and step % 10 == 0:
            result = made_result("pairs", step)
            record.metrics(step, **result.metrics(), minutes=step / 10)
    record.event("finished", f"finished at step {STEPS}", step=STEPS)
    if evaluated:
        save_results([made_result("pairs", STEPS)], report_folder(run.path, STEPS), STEPS)
    return run


def _measured(step: int, rng: np.random.Generator) -> dict[str, float]:
    shares = {f"{part}_share": 0.1 + number / 100 for number, part in enumerate(SHARES)}
    return {
        "train/loss": 10 / step + float(rng.normal(0, 0.01)),
        "train/lr": 0.1 * (1 - step / STEPS),
        "train/grad_norm": 2.0,
        "train/epoch": step / 10,
        "train/target_cosine": step / STEPS,
        "images_per_s": 100.0 + step,
        "minutes": step / 10,
        **shares,
    }


def made_result(name: str, step: int, examples: Mapping[str, Any] | None = None) -> Result:
    """A result with all that one may have; the number of the EER is not known."""
    rate = np.geomspace(1e-4, 1, 50)
    accepted = rate**0.25
    rng = np.random.default_rng(0)
    return Result(
        name,
        QUANTITIES,
        {"accuracy": 0.5 + step / 100, "auc": 0.9123, "eer": None, "threshold": 0.2},
        {"pairs": 600},
        {"accuracy": 0.0123},
        {"auc": (0.9012, 0.9234)},
        curves={
            "roc": Curve(
                f"{name}: ROC, AUC {0.9 + step / 1000:.3f}",
                "false accept rate",
                "true accept rate",
                rate,
                accepted,
                log_x=True,
                low=accepted * 0.9,
                high=np.minimum(accepted * 1.1, 1),
                lines={"group A": (rate, accepted * 0.8)},
            )
        },
        histograms={
            "scores": Histogram(
                f"{name}: 90.0% (10-fold)",
                "cosine",
                "pairs",
                {"genuine": rng.normal(0.5, 0.1, 300), "impostor": rng.normal(0, 0.1, 300)},
                mark=0.2,
            )
        },
        tables={
            "groups": {
                "A": {"tar": 0.8, "tar_low": 0.7, "tar_high": 0.9, "pairs": 300},
                "B": {"tar": 0.9, "tar_low": 0.85, "tar_high": None, "pairs": 300},
            },
            "gaps": {"tar": 0.1},
        },
        examples={
            "hardest genuine pairs": [Example((jpeg(), jpeg()), "a and b", 0.1)],
            **(examples or {}),
        },
    )


def jpeg(side: int = 16) -> bytes:
    """A small JPEG."""
    import cv2

    made: bytes = cv2.imencode(".jpg", np.full((side, side, 3), 128, np.uint8))[1].tobytes()
    return made


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]
