"""`manyfaces data VERB ...`: make datasets, look at them, and take samples out of them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyfaces.configs.errors import UserError
from manyfaces.train.cli.options import Dataset, NewDataset, Processes, Seed, ShardImages
from manyfaces.train.cli.output import console, load_config, note, say
from manyfaces.train.cli.verbs import Verbs, positive, quality

if TYPE_CHECKING:
    from manyfaces.data.dataset.manifest import Manifest


class DataVerbs(Verbs):
    """The verbs of datasets. `convert` has the options that the kinds of sources declare as well;
    those kinds are imported for that verb alone."""

    def get_command(self, ctx: Any, name: str) -> Any:
        if name != "convert":
            return super().get_command(ctx, name)
        alone = typer.Typer(
            add_completion=False,
            rich_markup_mode=None,
            context_settings=ctx.command.context_settings,
        )
        alone.command("convert")(_with_source_options(convert_sources))
        return typer.main.get_command(alone)


def _with_source_options(convert: Callable[..., None]) -> Callable[..., None]:
    """The function with a keyword for each option of the kinds of sources, which it gets together
    as the mapping `options`."""
    from manyfaces.data.sources.recognise import source_options

    declared = source_options()

    @functools.wraps(convert)
    def with_options(**words: Any) -> None:
        given = {option.name: words.pop(option.name) for option in declared}
        convert(options=given, **words)

    own = inspect.signature(convert).parameters
    more = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                option.type | None, typer.Option(help=option.help, metavar=option.metavar)
            ],
        )
        for option in declared
    ]
    plain = [parameter for name, parameter in own.items() if name != "options"]
    vars(with_options)["__signature__"] = inspect.Signature([*plain, *more])
    return with_options


app = typer.Typer(cls=DataVerbs)

Sources = Annotated[
    list[Path],
    typer.Argument(metavar="SRC", help="Recognised by what they hold; several are merged."),
]
SourceOptions = Annotated[Mapping[str, object] | None, typer.Option(hidden=True)]
Reencode = Annotated[
    int | None,
    typer.Option(
        parser=quality,
        metavar="QUALITY",
        help="Write every image anew as a JPEG; default: bytes are kept.",
    ),
]
Resize = Annotated[
    int | None, typer.Option(parser=positive, metavar="PX", help="Resize to PX x PX.")
]
Align = Annotated[
    Path | None,
    typer.Option(
        metavar="LANDMARKS",
        help="Align to the 112x112 template; the file has lines `path_or_key x1 y1 ... x5 y5`.",
    ),
]
MinImages = Annotated[
    int, typer.Option(parser=positive, metavar="N", help="Leave out identities with fewer.")
]
IdentityMap = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Lines `name<TAB>merged name`; of several sources `source/name`."
    ),
]
NumIdentities = Annotated[int, typer.Option(parser=positive, metavar="N")]
NumImages = Annotated[
    int, typer.Option(parser=positive, metavar="N", help="Images of each identity.")
]
FolderOrUrl = Annotated[Path, typer.Argument(metavar="FOLDER_OR_URL")]
IndexFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the index goes of shards at a URL that cannot be written to.",
    ),
]
Grid = Annotated[Path, typer.Option(metavar="GRID.png")]
Identity = Annotated[
    str | None,
    typer.Option(
        metavar="WHO", help="A class id, or a line of identities.txt; default: random images."
    ),
]
GridCount = Annotated[
    int | None,
    typer.Option(parser=positive, metavar="N", help="Images; default: 64, with --augmented 8."),
]
Augmented = Annotated[
    str | None,
    typer.Option(
        metavar="CONFIG",
        help="A recipe: each image as it is and as its data.augment changes it.",
    ),
]
PairsFile = Annotated[Path, typer.Argument(metavar="OUT.bin")]
NumPairs = Annotated[int, typer.Option(parser=positive, metavar="N")]
Forgotten = Annotated[
    list[str] | None,
    typer.Option("--identity", metavar="WHO", help="A class id or name; may be repeated."),
]
EditsFile = Annotated[Path, typer.Argument(metavar="EDITS", help="A line an edit.")]
Keys = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A file of samples, a line each: KEY or SHARD:KEY."),
]


@app.command("convert")
def convert_sources(
    sources: Sources,
    out: NewDataset,
    reencode: Reencode = None,
    resize: Resize = None,
    align: Align = None,
    min_images: MinImages = 1,
    identity_map: IdentityMap = None,
    seed: Seed = 0,
    processes: Processes = None,
    shard_images: ShardImages = 8192,
    options: SourceOptions = None,
) -> None:
    """Make a dataset of foreign files.

    Image folders, lists, zips, MXNet records and parquet files are recognised by what they hold:

    \b
      manyfaces data convert FOLDER DATASET       FOLDER/<identity>/**/*.jpg (png, webp, ..)
      manyfaces data convert list.txt DATASET     lines `path<TAB>label`, or one space between
      manyfaces data convert faces.zip DATASET    **/<identity>/*.jpg inside, not unpacked
      manyfaces data convert faces_emore DATASET  MXNet train.rec, with train.idx or without
      manyfaces data convert hf_export DATASET    parquet: image bytes and a label

    JPEG bytes are kept as they are unless an option asks for more. All cores are used; the same
    command goes on after a kill. Several sources are merged: their identities are named
    source/name and stay apart unless --identity-map joins them. Class ids are in seeded random
    order, their names in identities.txt. report.json and histogram.png tell what came out,
    dropped.jsonl every image and every other file that was left out and why; exact duplicates are
    counted and kept. Hidden, system and thumbnail folders are nobody's. Files that are parts of one
    by their names (train_0.rec, train_1.rec) are one source, named one by one or by their folder.

    Labels of a .rec are float32: those beyond 16,777,216 are recovered from the order of the images
    or from a .lst beside it where that leaves no doubt, else refused by key.
    """
    from manyfaces.data.conversion.convert import convert
    from manyfaces.data.conversion.edit import Edit
    from manyfaces.data.conversion.report import lines

    manifest = convert(
        sources,
        out,
        options=options or {},
        edit=Edit(reencode, resize, align=align is not None),
        landmarks=align,
        min_images=min_images,
        identity_map=identity_map,
        seed=seed,
        processes=processes,
        shard_images=shard_images,
    )
    _tell(out, manifest)
    for line in lines(out):
        say(line)


@app.command("synth")
def synthesise_identities(
    out: NewDataset,
    identities: NumIdentities,
    images: NumImages,
    seed: Seed = 0,
    processes: Processes = None,
    shard_images: ShardImages = 8192,
) -> None:
    """Make a dataset of synthetic identities.

    The same seed gives the same bytes anywhere, another one other people.
    """
    from manyfaces.data.synthetic.dataset import synthesise

    manifest = synthesise(
        out, identities, images, seed=seed, processes=processes, shard_images=shard_images
    )
    _tell(out, manifest)


@app.command("index")
def index_shards(folder: FolderOrUrl, out: IndexFolder = None) -> None:
    """Index WebDataset shards of others, in place or at a URL.

    A sample is KEY.jpg beside KEY.cls or KEY.json. Nothing is copied.
    """
    from manyfaces.configs.urls import url_of

    if (url := url_of(folder)) is None:
        from manyfaces.data.dataset.index_shards import index_folder

        if out is not None:
            raise UserError("--out is for shards at a URL; a folder's index goes into it")
        return _tell(folder, index_folder(folder, tell=note))
    from manyfaces.data.dataset.index_url import index_url

    manifest, path = index_url(url, out, tell=note)
    _tell(path, manifest)
    say(f"the shards stay where they are; train with data.path={path}")


@app.command("check")
def check_dataset(dataset: Dataset, processes: Processes = None) -> None:
    """Hash every byte and decode every image.

    What is broken is named by shard and key, all of it in DATASET/check.json; a JPEG with data
    missing in the middle counts, which decoders take without an error. The exit code is 2 if
    anything is broken.
    """
    from manyfaces.data.dataset.check import CHECK, check
    from manyfaces.data.dataset.dataset import open_part
    from manyfaces.data.dataset.forgotten import read_forgotten_part

    opened = open_part(dataset)
    faults = check(opened, processes)
    report = opened.path / CHECK
    if forgotten := read_forgotten_part(opened).in_words():
        say(f"{opened.path}: forgotten, but checked as all others: {forgotten}")
    if not faults:
        say(
            f"{opened.path}: {opened.manifest.num_images:,} images, every byte hashed and every "
            "image decoded: all whole"
        )
        return
    for fault in faults[:20]:
        key = f":{fault['key']}" if fault["key"] else ""
        say(f"{fault['shard']}{key}: {fault['reason']}")
    if len(faults) > 20:
        say(f"and {len(faults) - 20:,} more, all in {report}")
    raise UserError(
        f"{opened.path}: broken in {len(faults):,} places, listed in {report}; restore the "
        "shards, or leave the samples out"
    )


@app.command("stats")
def show_stats(dataset: Dataset) -> None:
    """Show how many images there are of whom.

    It counts images, identities, images of an identity (with a histogram), bytes and sizes.
    """
    from rich.table import Table

    from manyfaces.data.conversion.report import HISTOGRAM, histogram
    from manyfaces.data.dataset.dataset import open_part
    from manyfaces.data.dataset.forgotten import read_forgotten_part
    from manyfaces.data.dataset.inspect import stats
    from manyfaces.train.cli.stats_rows import stats_rows

    opened = open_part(dataset)
    found = stats(opened)
    picture = opened.path / HISTOGRAM
    histogram(found.images_of_identity_C[found.images_of_identity_C > 0], picture)
    table = Table(show_header=False)
    for label, text in [*stats_rows(found), ("histogram", str(picture))]:
        table.add_row(label, text)
    if forgotten := read_forgotten_part(opened).in_words():
        table.add_row("forgotten of these", forgotten)
    console.print(table)


@app.command("sample")
def draw_sample(
    dataset: Dataset,
    out: Grid,
    identity: Identity = None,
    count: GridCount = None,
    seed: Seed = 0,
    augmented: Augmented = None,
) -> None:
    """Draw images of a dataset in a grid."""
    from manyfaces.data.dataset.dataset import open_part
    from manyfaces.data.dataset.inspect import sample

    config = load_config(augmented, ()) if augmented else None
    what, broken = sample(
        open_part(dataset), out, identity=identity, count=count, seed=seed, config=config
    )
    lost = f"; {broken} could not be decoded" if broken else ""
    say(f"{out}: {what}{lost}")


@app.command("pairs")
def draw_verification_pairs(
    dataset: Dataset, out: PairsFile, count: NumPairs = 6000, seed: Seed = 0
) -> None:
    """Draw verification pairs of held-out identities."""
    from manyfaces.data.dataset.dataset import open_part
    from manyfaces.data.dataset.draw_pairs import draw_pairs
    from manyfaces.data.sources.verification_bin import write_bin

    write_bin(out, *draw_pairs(open_part(dataset), count, seed))
    say(f"{out}: {count:,} pairs")


@app.command("forget")
def forget_samples(dataset: Dataset, identity: Forgotten = None, keys: Keys = None) -> None:
    """Forget identities or single samples.

    From a job's next start or resume these samples keep their place with label -1 and their bytes
    are not read. A forgotten identity is left out of the softmax, and its centre is zero in every
    later checkpoint. Nothing else moves. Shards and checkpoints of before still hold them until
    you remove those: `manyfaces data compact` writes shards without them.
    """
    from manyfaces.data.dataset.dataset import open_part
    from manyfaces.data.dataset.forget import forget

    # What is no UTF-8 is no key of a sample, and is told as one that is not there.
    lines = keys.read_text(errors="replace").splitlines() if keys else []
    samples = [line.strip() for line in lines if line.strip()]
    if not samples and not identity:
        raise UserError("nothing to forget: give --identity ID or --keys FILE")
    known = forget(open_part(dataset), identity or [], samples)
    say(
        f"{dataset}: forgotten are {len(known.identities):,} identities and "
        f"{len(known.samples):,} single samples"
    )
    say(
        "jobs heed it from their next start or resume; checkpoints and shards of before still hold "
        "them"
    )


@app.command("relabel")
def relabel_samples(dataset: Dataset, edits: EditsFile) -> None:
    """Drop images, move them to other identities, merge identities.

    EDITS has a line for each edit, with tabs between; a reason and a score may follow:

    \b
      drop     KEY                    KEY or SHARD:KEY, as data forget takes it
      relabel  KEY       IDENTITY     a class id, or a name of identities.txt
      merge    IDENTITY  IDENTITY     the images of the first become the second's

    They are added to DATASET/edits.arrow; of two edits of an image the later command's counts.
    Jobs heed it from their next start or resume: dropped images keep their place with label -1,
    no other image moves, and an identity without images is left out of the softmax with a centre
    of zero. Shards do not change: remove the file to take all edits back; `manyfaces data compact`
    writes shards in which they are real.
    """
    from manyfaces.data.dataset.dataset import open_part
    from manyfaces.data.dataset.relabel import read_lines, relabel

    say(f"{dataset}: edited: {relabel(open_part(dataset), read_lines(edits)).in_words()}")


@app.command("compact")
def compact_dataset(dataset: Dataset, out: NewDataset) -> None:
    """Write a new dataset with what is forgotten or edited made real."""
    from manyfaces.data.dataset.compact import compact
    from manyfaces.data.dataset.dataset import open_part

    _tell(out, compact(open_part(dataset), out))


def _tell(out: Path | str, manifest: "Manifest") -> None:
    size = "x".join(map(str, manifest.image_px)) if manifest.image_px else "several sizes"
    say(
        f"{out}: {manifest.num_images:,} images ({size}) of {manifest.num_identities:,} identities "
        f"in {len(manifest.shards)} shards"
    )
