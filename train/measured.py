"""The rate that a run was measured at, for the plan of another one."""

from pathlib import Path
from statistics import median
from typing import Any

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load
from manyfaces.configs.plan import has_gpus, world_size
from manyfaces.configs.plan_time import MeasuredRate
from manyfaces.configs.precision import Precision, precision
from manyfaces.configs.schema import Config
from manyfaces.train.folder import RunFolder
from manyfaces.train.record import EVENTS, METRICS, read_rows

_PARTS = ("data_wait", "forward", "head", "backward", "optimizer", "checkpoint")


def rate_like(config: Config, run: Path) -> MeasuredRate:
    """Images a second of the newest attempt at the run that has measured any, for as many workers
    as the configuration has: as many times as fast on as many times the workers. Raises `UserError`
    where the run has measured nothing, or trained something else."""
    folder = RunFolder(run)
    rows = [row for row in read_rows(run / METRICS) if "images_per_s" in row]
    if not rows or not folder.config.is_file():
        raise UserError(
            f"--like {run}: no run with a measured rate is there; give the folder of a run, with "
            f"{METRICS} and {folder.config.name}"
        )
    theirs = load(folder.config)
    for key, mine, other in (
        ("model", config.model, theirs.model),
        ("data.image_px", config.data.image_px, theirs.data.image_px),
        ("train.precision", *(_precision(each) for each in (config, theirs))),
    ):
        if mine != other:
            raise UserError(
                f"--like {run}: its {key} is another than this configuration's, so that its rate "
                "says nothing about it; leave --like out, or give --images-per-s"
            )
    rows, world = _last_attempt(run, rows)
    workers = world or world_size(theirs)
    planned = world_size(config)
    rate = median(row["images_per_s"] for row in rows)
    told = f"{rate:,.4g} images/s, the median of {run} on {workers} worker{'s' * (workers > 1)}"
    if planned != workers:
        told += f", taken as {planned / workers:.3g} times as fast on {planned}"
    shares = [
        f"{part.replace('_', ' ')} {median(row.get(f'{part}_share', 0.0) for row in rows):.0%}"
        for part in _PARTS
    ]
    return MeasuredRate(rate * planned / workers, f"{told}; its time went to {', '.join(shares)}")


def _precision(config: Config) -> Precision:
    return precision(config.train, is_gpu=has_gpus(config))


def _last_attempt(run: Path, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Those of the measured rows that the attempt of the last of them has written, and its number
    of workers; 0 where that is not recorded. Attempts may have had different numbers."""
    starts = [row for row in read_rows(run / EVENTS) if row["kind"] == "start"]
    began = next((row for row in reversed(starts) if row["time"] <= rows[-1]["time"]), None)
    if began is None:
        return rows, 0
    return [row for row in rows if row["time"] >= began["time"]], int(began.get("world_size", 0))
