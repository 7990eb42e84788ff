"""Which samples lie far from their class: the cleaning report of Sub-center ArcFace (Deng et al.,
ECCV 2020).

A class has K sub-centres. The one that is nearest to most of the class's samples is dominant; what
lies beyond an angle from it is taken for a wrong label. First all samples are embedded and their
angles written to a file; which sub-centre is dominant is known then, and the file is read again for
the report. Beyond a row group only the counts of classes x K are in memory.

Shapes: N a batch, C classes, K sub-centres, D the embedding.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import open_dataset, verify
from manyfaces.data.dataset.mixture import AnyDataset, open_data
from manyfaces.data.dataset.names import name_lines
from manyfaces.data.progress import ImageBar
from manyfaces.train.checkpoint.checkpoint import read_state
from manyfaces.train.checkpoint.head_files import HeadFiles, SubCentres
from manyfaces.train.evaluation.embed import Embedded, LeftOut, embed
from manyfaces.train.evaluation.evaluate import open_trained

TABLE, PICTURE, DROP = "cleaning.parquet", "cleaning.png", "drop.txt"
_ROW_GROUP = 1 << 16
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
class _Judged:
    """What the second pass counts."""

    kept_C: NDArray[np.int32]
    """Samples of each class that are not to be dropped."""
    other: int = 0
    """Samples whose nearest sub-centre is not the dominant one."""
    dropped: int = 0
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 180), np.int64))
    """Angles to the dominant sub-centre, by whether another one is nearer, and in whole degrees."""


def report(
    run: Path, out: Path, dataset_path: str | None, angle_deg: float, console: Console
) -> None:
    """Write `cleaning.parquet` (a row a sample), `cleaning.png` and `drop.txt` to `out`, and print
    a summary.

    `run` is a run, whose newest checkpoint is taken, or a checkpoint folder; the dataset is the
    run's own unless given. Of a mixture, samples and identities are counted over its parts, and
    each part has a `drop-N.txt` of its own. Raises `UserError`.
    """
    if not 0 < angle_deg < 180:
        raise UserError(
            f"--angle {angle_deg:g}: expected degrees between 0 and 180; the paper has 75"
        )
    checkpoint, config, backbone, device = open_trained(run)
    num_classes, trained_on = (read_state(checkpoint)[key] for key in ("num_classes", "dataset"))
    dataset: AnyDataset = (
        open_dataset(dataset_path, config.data) if dataset_path else open_data(config.data)
    )
    if (has := dataset.manifest.num_identities) != num_classes:
        raise UserError(
            f"{dataset.where} has {has:,} identities, {checkpoint} {num_classes:,} classes; give "
            "--dataset the one of these"
        )
    if dataset.manifest.fingerprint != trained_on:
        console.print(
            f"{dataset.where} is not what {checkpoint} was trained on: its class ids have to mean "
            "the same people"
        )
    for part in dataset.parts:
        verify(part.dataset, "sizes")
    centres = SubCentres(HeadFiles(checkpoint, num_classes))
    if config.head.margin.kind == "none":
        raise UserError(
            f"{checkpoint}: head.margin none has no class centres to measure from; report on a run "
            "with another margin"
        )
    names = _names(dataset)
    count_CK, left_out = np.zeros((num_classes, len(centres)), np.int32), LeftOut()
    fields = [
        *(_SCHEMA.field(name) for name in ("sample", "key", "identity")),
        pa.field("angles", pa.list_(pa.float32(), len(centres))),
    ]
    lists = (
        [DROP] if len(dataset.parts) == 1 else [f"drop-{n}.txt" for n in range(len(dataset.parts))]
    )
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".cleaning-", dir=out) as folder:
        temporary = Path(folder)
        with (
            ImageBar("embedding", dataset.manifest.num_images, console, transient=True) as bar,
            pa.OSFile(f"{temporary}/angles", "wb") as sink,
        ):
            embedded = embed(dataset, config, backbone, device, left_out, bar.count)
            with pa.ipc.new_stream(sink, pa.schema(fields)) as writer:
                for rows in _measure(embedded, centres, count_CK):
                    writer.write_batch(pa.record_batch(rows, pa.schema(fields)))
        if not count_CK.any():
            raise UserError(
                f"{dataset.where}: no image is left: {left_out.forgotten:,} forgotten, "
                f"{left_out.broken:,} not decodable"
            )
        with (
            ImageBar("writing", int(count_CK.sum()), console, transient=True) as bar,
            pa.memory_map(f"{temporary}/angles") as source,
        ):
            files = [temporary / name for name in (TABLE, *lists)]
            judged = _judge(
                dataset, names, pa.ipc.open_stream(source), count_CK, angle_deg, files, bar
            )
        _draw(judged.histogram, angle_deg, temporary / PICTURE)
        for name in (TABLE, PICTURE, *lists):
            (temporary / name).replace(out / name)
    console.print(_summary(count_CK, left_out, judged, angle_deg))
    console.print(
        f"checkpoint  {checkpoint}\nreport      "
        f"{', '.join(str(out / name) for name in (TABLE, PICTURE, *lists))}",
        markup=False,
    )
    for part, name in zip(dataset.parts, lists, strict=True):
        if (out / name).stat().st_size:
            console.print(
                f"to drop     manyfaces data forget {part.dataset.where} --keys {out / name}",
                markup=False,
            )


_Rows = tuple[NDArray[np.int64], list[str], NDArray[np.int64], NDArray[np.float32]]


def _measure(
    embedded: Iterable[Embedded], centres: SubCentres, count_CK: NDArray[np.int32]
) -> Iterator[list[pa.Array]]:
    """Row groups of sample, key, identity and degrees to all sub-centres of the class; counts the
    nearest ones."""
    held: list[_Rows] = []
    for ids_N, labels_N, keys, unit_ND in embedded:
        unit_N1D, rows_NKD = unit_ND[:, None], centres.take(labels_N).to(unit_ND.device)
        # Of two unit vectors; an arc cosine of a float32 would be off by 0.02 degrees near 0.
        halves_NK = torch.atan2(
            (unit_N1D - rows_NKD).norm(dim=2), (unit_N1D + rows_NKD).norm(dim=2)
        )
        angles_NK = (2 * halves_NK).rad2deg().cpu().numpy()
        np.add.at(count_CK, (labels_N, angles_NK.argmin(1)), 1)
        held.append((ids_N, keys, labels_N, angles_NK))
        if sum(len(rows[0]) for rows in held) >= _ROW_GROUP:
            yield _columns(held)
            held.clear()
    if held:
        yield _columns(held)


def _columns(held: list[_Rows]) -> list[pa.Array]:
    ids, keys, classes, angles = zip(*held, strict=True)
    angles_NK = np.concatenate(angles)
    flat = pa.array(angles_NK.reshape(-1))
    columns = (
        pa.array(np.concatenate(ids)),
        pa.array(itertools.chain(*keys), pa.string()),
        pa.array(np.concatenate(classes), pa.int32()),
    )
    return [*columns, pa.FixedSizeListArray.from_arrays(flat, angles_NK.shape[1])]


def _judge(
    dataset: AnyDataset,
    names: pa.Array,
    measured: Iterable[pa.RecordBatch],
    count_CK: NDArray[np.int32],
    angle_deg: float,
    files: list[Path],
    bar: ImageBar,
) -> _Judged:
    """Write the table and, for each part, the keys to drop."""
    table, *drops = files
    dominant_C = count_CK.argmax(1)  # of equal counts the first
    judged = _Judged(np.zeros(len(dominant_C), np.int32))
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(table, _SCHEMA))
        lists = [stack.enter_context(path.open("w")) for path in drops]
        for batch in measured:
            sample_N, class_N = (
                np.from_dlpack(batch[name]).astype(np.int64) for name in ("sample", "identity")
            )
            angles_NK = np.from_dlpack(batch["angles"].flatten()).reshape(len(batch), -1)
            nearest_N, dominant_N = angles_NK.argmin(1), dominant_C[class_N]
            angle_N, dominant_angle_N = (
                angles_NK[np.arange(len(batch)), k_N] for k_N in (nearest_N, dominant_N)
            )
            is_dominant_N, drop_N = nearest_N == dominant_N, dominant_angle_N > angle_deg
            columns = [
                batch["sample"],
                batch["key"],
                batch["identity"],
                names.take(batch["identity"]),
                pa.array(nearest_N, pa.int8()),
                pa.array(angle_N),
                pa.array(is_dominant_N),
                pa.array(dominant_angle_N),
                pa.array(drop_N),
            ]
            writer.write_batch(pa.record_batch(columns, _SCHEMA), row_group_size=len(batch))
            for part, file in zip(dataset.parts, lists, strict=True):
                rows = part.slots(sample_N)[drop_N[part.slots(sample_N)]]
                file.writelines(f"{key}\n" for key in batch["key"].take(pa.array(rows)).to_pylist())
            judged.other += int((~is_dominant_N).sum())
            judged.dropped += int(drop_N.sum())
            np.add.at(judged.kept_C, class_N[~drop_N], 1)
            np.add.at(
                judged.histogram,
                ((~is_dominant_N).astype(int), dominant_angle_N.astype(int).clip(0, 179)),
                1,
            )
            bar.count(len(batch))
    return judged


def _names(dataset: AnyDataset) -> pa.Array:
    """Of each class, as the head's verbs have it; null where no `identities.txt` tells."""
    lines = (line.decode(errors="replace").rstrip("\n") for line in name_lines(dataset))
    names = pa.array(lines, pa.string())
    return names if len(names) else pa.nulls(dataset.manifest.num_identities, pa.string())


def _summary(
    count_CK: NDArray[np.int32], left_out: LeftOut, judged: _Judged, angle_deg: float
) -> Table:
    images, had_C = int(count_CK.sum()), count_CK.any(1)
    other = f"{judged.other:,} ({judged.other / images:.2%})"
    dropped = f"{judged.dropped:,} ({judged.dropped / images:.2%})"
    without = int((had_C & (judged.kept_C == 0)).sum())
    table = Table(show_header=False)
    for label, text in {
        "images": f"{images:,}",
        "left out": f"{left_out.forgotten:,} forgotten, {left_out.broken:,} not decodable",
        "sub-centres of a class": f"{count_CK.shape[1]}",
        "nearer to another than the dominant one": other,
        f"to drop: beyond {angle_deg:g} degrees of it": dropped,
        "identities that this would leave no image": f"{without:,} of {int(had_C.sum()):,}",
    }.items():
        table.add_row(label, text)
    return table


def _draw(histogram: NDArray[np.int64], angle_deg: float, path: Path) -> None:
    from matplotlib.figure import Figure  # without pyplot there is no display and no global state

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.stairs(
        histogram[0],
        range(181),
        fill=True,
        alpha=0.6,
        color="#3b6ea5",
        label="the dominant sub-centre is the nearest",
    )
    axes.stairs(
        histogram[1],
        range(181),
        fill=True,
        alpha=0.6,
        color="#c8553d",
        label="another one is nearer",
    )
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
