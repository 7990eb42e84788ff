"""`manyfaces head VERB ...`: which samples lie far from their class; identities come and go in a
committed checkpoint."""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyfaces.configs.errors import UserError
from manyfaces.train.cli.options import TrainedRun
from manyfaces.train.cli.output import console, say
from manyfaces.train.cli.verbs import Verbs, decimal, several_words

if TYPE_CHECKING:
    from manyfaces.data.dataset.dataset import Dataset
    from manyfaces.data.dataset.names import Names

app = typer.Typer(cls=Verbs)

Report = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", help="A new folder for cleaning.parquet, cleaning.png and drop.txt."
    ),
]
ReportDataset = Annotated[
    str | None,
    typer.Option(metavar="DATASET", help="Folder or URL; default: what the run was trained on."),
]
Angle = Annotated[
    float,
    typer.Option(
        parser=decimal,
        metavar="DEGREES",
        help="A sample farther than this from its class's dominant sub-centre is listed.",
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(metavar="CKPT", help="RUN/checkpoints/step-..., or RUN for its newest."),
]
Other = Annotated[
    Path,
    typer.Argument(
        metavar="OTHER",
        help="Another checkpoint; its rows are taken as they are, so both backbones should share "
        "an embedding space: one is fine-tuned from the other.",
    ),
]
Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="A new folder, such as edited/checkpoints/step-00000500."),
]
Identities = Annotated[
    list[str] | None, typer.Option("--identity", metavar="NAME...", help="Names.")
]
NamesFile = Annotated[
    Path, typer.Option("--names", metavar="FILE", help="A file with a name a line.")
]
NamesFileOrNot = Annotated[
    Path | None, typer.Option("--names", metavar="FILE", help="A file with a name a line.")
]
StartDatasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset",
        metavar="DATASET",
        help="A new row starts as the mean of its images there, under the checkpoint's backbone; "
        "without it as a fresh head's. Given several times: as a mixture's parts.",
    ),
]
NextDatasets = Annotated[
    list[str],
    typer.Option(
        "--dataset",
        metavar="DATASET",
        help="What the head is for next; given several times: as a mixture's parts, in their "
        "order.",
    ),
]
MixturePart = Annotated[
    str | None,
    typer.Option(
        metavar="PART",
        help="From a dataset to a mixture that has it, or back: what the mixture's names have "
        "before the slash.",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Identities that the head lacks start as a fresh head's, not as their images' mean.",
    ),
]


@app.command("report")
def report_far(
    run: TrainedRun, out: Report, dataset: ReportDataset = None, angle: Angle = 75.0
) -> None:
    """List the samples far from their class.

    Every image of the run's dataset is embedded. cleaning.parquet has its angle to the nearest
    sub-centre of its class and to the dominant one, which is nearest to most of the class's images
    (Sub-center ArcFace, ECCV 2020); cleaning.png shows all of them; drop.txt lists those beyond
    --angle as `manyfaces data forget DATASET --keys FOLDER/drop.txt` takes them. Look at the
    picture first: of a run that has not learnt yet, most lies beyond.
    """
    from manyfaces.train.curation.cleaning import report

    report(run, out, dataset, angle, console)


@app.command("remove", cls=several_words("--identity"))
def remove_identities(
    checkpoint: Checkpoint,
    out: Out,
    identity: Identities = None,
    names: NamesFileOrNot = None,
) -> None:
    """Write a checkpoint without some identities."""
    if bool(identity) == (names is not None):
        raise UserError("manyfaces head remove: give either --identity NAME... or --names FILE")
    from manyfaces.data.dataset.names import Names
    from manyfaces.train.curation.head_edit import remove

    wanted = _names(names) if names else Names.parse("\n".join(identity or ()).encode())
    _tell(out, remove(checkpoint, out, wanted))


@app.command("add")
def add_identities(
    checkpoint: Checkpoint, out: Out, names: NamesFile, dataset: StartDatasets = None
) -> None:
    """Write a checkpoint with new identities.

    They stand behind the others. Rows keep their bits and their optimiser's state, backbone and
    position stay. A new run goes on from OUT: run.name=NEW run.resume_from=OUT.
    """
    from manyfaces.train.curation.head_edit import add

    opened = _open(dataset) if dataset else None
    _tell(out, add(checkpoint, out, _names(names), opened))


@app.command("remap")
def remap_head(
    checkpoint: Checkpoint,
    out: Out,
    dataset: NextDatasets,
    part: MixturePart = None,
    fresh: Fresh = False,
) -> None:
    """Write a checkpoint for another dataset.

    Class rows are found by identity name, and stand in the order of that dataset. Who is not in it
    is dropped. The names of a mixture are PART_FOLDER/name; classes without identities.txt go by
    number.
    """
    from manyfaces.train.curation.head_edit import remap

    _tell(out, remap(checkpoint, out, _open(dataset), fresh, part))


@app.command("merge")
def merge_heads(checkpoint: Checkpoint, other: Other, out: Out) -> None:
    """Write a checkpoint of two.

    The identities of OTHER stand behind those of CKPT; a name that both have keeps CKPT's row.
    """
    from manyfaces.train.curation.head_edit import merge

    _tell(out, merge(checkpoint, other, out))


def _names(file: Path) -> "Names":
    from manyfaces.data.dataset.names import Names

    lines = [line for line in file.read_bytes().splitlines() if line]
    if not lines:
        raise UserError(f"{file}: no name in it; give one a line")
    return Names.parse(b"\n".join(lines))


def _open(paths: list[str]) -> "Dataset":
    from manyfaces.data.dataset.dataset import join, open_dataset
    from manyfaces.data.dataset.verify import verify

    datasets = [open_dataset(path) for path in paths]
    for dataset in datasets:
        verify(dataset.part, "sizes")
    if len(datasets) == 1:
        return datasets[0]
    return join(datasets, [Fraction(1, len(datasets))] * len(datasets))


def _tell(out: Path, counts: dict[str, int]) -> None:
    say(f"{out}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}")
    say(
        f"train on with run.resume_from={out}, another run.name and a dataset of these identities "
        "in this order"
    )
