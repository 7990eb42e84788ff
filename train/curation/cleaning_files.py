"""The second pass of the cleaning report: its table, its lists of samples to drop, and its picture.

Shapes: N samples of a row group, C classes, K sub-centres.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console

from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.progress import ImageBar
from manyfaces.train.curation.cleaning_angles import Measured

TABLE, PICTURE = "cleaning.parquet", "cleaning.png"
_SCHEMA = pa.schema(
    {
        "sample": pa.int64(),
        "key": pa.string(),
        "identity": pa.int32(),
        "name": pa.string(),
        "sub_centre": pa.int8(),
        "angle_deg": pa.float32(),
        "dominant": pa.bool_(),
        "dominant_angle_deg": pa.float32(),
        "drop": pa.bool_(),
    }
)


@dataclass
class Judged:
    """What the second pass counts."""

    kept_C: NDArray[np.int32]
    """Samples of each class that are not to be dropped."""
    other: int = 0
    """Samples whose nearest sub-centre is not the dominant one."""
    dropped: int = 0
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 180), np.int64))
    """Angles to the dominant sub-centre, by whether another one is nearer, and in whole degrees."""


@dataclass(frozen=True)
class _Verdicts:
    """What is said of the samples of one row group."""

    nearest_N: NDArray[np.int64]
    angle_N: NDArray[np.float32]
    is_dominant_N: NDArray[np.bool_]
    dominant_angle_N: NDArray[np.float32]
    drop_N: NDArray[np.bool_]


def drop_lists(dataset: Dataset) -> list[str]:
    """The name of each part's list of samples to drop."""
    if len(dataset.parts) == 1:
        return ["drop.txt"]
    return [f"drop-{number}.txt" for number in range(len(dataset.parts))]


def write_files(
    dataset: Dataset,
    names: pa.Array,
    measured: Measured,
    angle_deg: float,
    folder: Path,
    console: Console,
) -> Judged:
    """Write the table, each part's list and the picture to `folder`. `names` has that of each
    class."""
    dominant_C = measured.count_CK.argmax(1)  # of equal counts the first
    judged = Judged(np.zeros(len(dominant_C), np.int32))
    with contextlib.ExitStack() as stack:
        images = int(measured.count_CK.sum())
        bar = stack.enter_context(ImageBar("writing", images, console, transient=True))
        source = stack.enter_context(pa.memory_map(str(measured.file)))
        writer = stack.enter_context(pq.ParquetWriter(folder / TABLE, _SCHEMA))
        lists = [
            stack.enter_context((folder / name).open("w", encoding="utf-8"))
            for name in drop_lists(dataset)
        ]
        for group in pa.ipc.open_stream(source):
            sample_N, class_N = (
                np.from_dlpack(group[name]).astype(np.int64) for name in ("sample", "identity")
            )
            verdicts = _judge(group, dominant_C[class_N], angle_deg)
            table = _table(group, names, verdicts)
            writer.write_batch(table, row_group_size=len(group))
            for part, file in zip(dataset.parts, lists, strict=True):
                slots = part.slots(sample_N)
                rows = slots[verdicts.drop_N[slots]]
                keys = group["key"].take(pa.array(rows)).to_pylist()
                file.writelines(f"{key}\n" for key in keys)
            _count(judged, verdicts, class_N)
            bar.count(len(group))
    _draw(judged.histogram, angle_deg, folder / PICTURE)
    return judged


def _judge(group: pa.RecordBatch, dominant_N: NDArray[np.int64], angle_deg: float) -> _Verdicts:
    flat = np.asarray(np.from_dlpack(group["angles"].flatten()), np.float32)
    angles_NK = flat.reshape(len(group), -1)
    rows = np.arange(len(group))
    nearest_N = angles_NK.argmin(1)
    dominant_angle_N = angles_NK[rows, dominant_N]
    return _Verdicts(
        nearest_N=nearest_N,
        angle_N=angles_NK[rows, nearest_N],
        is_dominant_N=nearest_N == dominant_N,
        dominant_angle_N=dominant_angle_N,
        drop_N=dominant_angle_N > angle_deg,
    )


def _table(group: pa.RecordBatch, names: pa.Array, verdicts: _Verdicts) -> pa.RecordBatch:
    columns = [
        group["sample"],
        group["key"],
        group["identity"],
        names.take(group["identity"]),
        pa.array(verdicts.nearest_N, pa.int8()),
        pa.array(verdicts.angle_N),
        pa.array(verdicts.is_dominant_N),
        pa.array(verdicts.dominant_angle_N),
        pa.array(verdicts.drop_N),
    ]
    return pa.record_batch(columns, _SCHEMA)


def _count(judged: Judged, verdicts: _Verdicts, class_N: NDArray[np.int64]) -> None:
    judged.other += int((~verdicts.is_dominant_N).sum())
    judged.dropped += int(verdicts.drop_N.sum())
    np.add.at(judged.kept_C, class_N[~verdicts.drop_N], 1)
    degrees_N = verdicts.dominant_angle_N.astype(int).clip(0, 179)
    np.add.at(judged.histogram, ((~verdicts.is_dominant_N).astype(int), degrees_N), 1)


def _draw(histogram: NDArray[np.int64], angle_deg: float, path: Path) -> None:
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for counts, colour, label in (
        (histogram[0], "#3b6ea5", "the dominant sub-centre is the nearest"),
        (histogram[1], "#c8553d", "another one is nearer"),
    ):
        axes.stairs(counts, range(181), fill=True, alpha=0.6, color=colour, label=label)
    axes.axvline(angle_deg, color="black", linestyle="--", label=f"{angle_deg:g} degrees")
    axes.set(
        xlabel="degrees from the class's dominant sub-centre",
        ylabel="images",
        yscale="log",
        xlim=(0, 180),
    )
    axes.set_ylim(bottom=0.8)
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120, format="png")
