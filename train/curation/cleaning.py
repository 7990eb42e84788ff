"""Which samples lie far from their class: the cleaning report of Sub-center ArcFace (Deng et al.,
ECCV 2020).

A class has K sub-centres. The one that is nearest to most of the class's samples is dominant; what
lies beyond an angle from it is taken for a wrong label. First all samples are embedded and their
angles written to a file; which sub-centre is dominant is known then, and the file is read again for
the report. Beyond a row group only the counts of classes x K are in memory.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset, open_data, open_dataset
from manyfaces.data.dataset.names import name_lines
from manyfaces.data.dataset.verify import verify
from manyfaces.train.checkpoint.head_files import HeadFiles, SubCentres, refuse_without_head
from manyfaces.train.curation.cleaning_angles import Measured, measure
from manyfaces.train.curation.cleaning_files import PICTURE, TABLE, Judged, drop_lists, write_files
from manyfaces.train.evaluation.trained import Trained, open_trained, use_all_cores

_BATCH_SIZE = 256


def report(
    run: Path, out: Path, dataset_path: str | None, angle_deg: float, console: Console
) -> None:
    """Write `cleaning.parquet` (a row a sample), `cleaning.png` and `drop.txt` to `out`, and print
    a summary.

    `run` is a run, whose newest checkpoint is taken, or a checkpoint folder; the dataset is the
    run's own unless given. In a mixture samples and identities are counted over its parts, and each
    part has a `drop-N.txt` of its own. Raises `UserError` for a run without class centres, and for
    a dataset with another number of identities than the run has classes.
    """
    if not 0 < angle_deg < 180:
        raise UserError(
            f"--angle {angle_deg:g}: expected degrees between 0 and 180; the paper has 75"
        )
    use_all_cores()
    trained = open_trained(run)
    refuse_without_head(trained.config, trained.checkpoint)
    dataset = _open_dataset(trained, dataset_path, console)
    centres = SubCentres(HeadFiles(trained.checkpoint, trained.state.num_classes))
    names = _names(dataset)
    files = (TABLE, PICTURE, *drop_lists(dataset))
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".cleaning-", dir=out) as folder:
        temporary = Path(folder)
        embedder = trained.embedder(_BATCH_SIZE)
        measured = measure(dataset, embedder, centres, temporary / "angles", console)
        judged = write_files(dataset, names, measured, angle_deg, temporary, console)
        for name in files:
            (temporary / name).replace(out / name)
    console.print(_summary(measured, judged, angle_deg))
    console.print(f"checkpoint  {trained.checkpoint}")
    console.print(f"report      {', '.join(str(out / name) for name in files)}")
    for part, name in zip(dataset.parts, drop_lists(dataset), strict=True):
        if (out / name).stat().st_size:
            console.print(f"to drop     manyfaces data forget {part.where} --keys {out / name}")


def _open_dataset(trained: Trained, path: str | None, console: Console) -> Dataset:
    """The dataset at the path, or the run's own, with a word where it is not what was trained on.
    Raises `UserError` for another number of identities."""
    data, checkpoint = trained.config.data, trained.checkpoint
    dataset: Dataset = open_dataset(path, data) if path else open_data(data)
    classes, has = trained.state.num_classes, dataset.manifest.num_identities
    if has != classes:
        raise UserError(
            f"{dataset.where} has {has:,} identities, {checkpoint} {classes:,} classes; give "
            "--dataset the one of these"
        )
    if dataset.manifest.fingerprint != trained.state.dataset:
        console.print(
            f"{dataset.where} is not what {checkpoint} was trained on: its class ids have to mean "
            "the same people"
        )
    for part in dataset.parts:
        verify(part, "sizes")
    return dataset


def _names(dataset: Dataset) -> pa.Array:
    """The name of each class, as the head's verbs have it; null where no `identities.txt` tells."""
    lines = (line.decode(errors="replace").rstrip("\n") for line in name_lines(dataset))
    names = pa.array(lines, pa.string())
    return names if len(names) else pa.nulls(dataset.manifest.num_identities, pa.string())


def _summary(measured: Measured, judged: Judged, angle_deg: float) -> Table:
    images, had_C = int(measured.count_CK.sum()), measured.count_CK.any(1)
    left_out = measured.left_out
    other = f"{judged.other:,} ({judged.other / images:.2%})"
    dropped = f"{judged.dropped:,} ({judged.dropped / images:.2%})"
    without = int((had_C & (judged.kept_C == 0)).sum())
    table = Table(show_header=False)
    for label, text in {
        "images": f"{images:,}",
        "left out": f"{left_out.forgotten:,} forgotten, {left_out.broken:,} not decodable",
        "sub-centres of a class": f"{measured.count_CK.shape[1]}",
        "nearer to another than the dominant one": other,
        f"to drop: beyond {angle_deg:g} degrees of it": dropped,
        "identities that this would leave no image": f"{without:,} of {int(had_C.sum()):,}",
    }.items():
        table.add_row(label, text)
    return table
