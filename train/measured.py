"""The rate that a run was measured at, for the plan of another one."""

from pathlib import Path
from statistics import median

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load
from manyfaces.configs.plan import world_size
from manyfaces.configs.plan_time import MeasuredRate
from manyfaces.configs.schema import Config
from manyfaces.train.folder import RunFolder
from manyfaces.train.record import METRICS, last_event, read_rows

_PARTS = ("data_wait", "forward", "head", "backward", "optimizer", "checkpoint")


def rate_like(config: Config, run: Path) -> MeasuredRate:
    """Images a second of the run, for as many workers as the configuration has: as many times as
    fast on as many times the workers. Raises `UserError` where the run has measured nothing, or
    trained something else."""
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
        ("train.precision", config.train.precision, theirs.train.precision),
    ):
        if mine != other:
            raise UserError(
                f"--like {run}: its {key} is another than this configuration's, so that its rate "
                "says nothing about it; leave --like out, or give --images-per-s"
            )
    workers = int((last_event(run, "start") or {}).get("world_size", 0)) or world_size(theirs)
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
