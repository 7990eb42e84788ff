"""`manyfaces embed` and `manyfaces search`: many images as embeddings, and the nearest of them."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from manyfaces.cluster.memory import restart_keeping_memory
from manyfaces.cluster.signals import listening
from manyfaces.configs.launcher import under_torchrun, works_here
from manyfaces.configs.schema import Cluster
from manyfaces.configs.this_machine import num_gpus
from manyfaces.train.cli.output import console, note, say
from manyfaces.train.cli.training import ProcessOwner
from manyfaces.train.cli.verbs import positive

Network = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, RUN@best, a checkpoint, what `manyfaces export` wrote, or weights that others "
        "have published.",
    ),
]
ImageWords = Annotated[
    list[str],
    typer.Argument(metavar="IMAGES...", help="Recognised by what they hold; several are joined."),
]
Out = Annotated[
    Path,
    typer.Option(
        metavar="OUT",
        help="NAME.parquet for one file, put together at the end; any other name for a folder of "
        "parts.",
    ),
]
Flip = Annotated[
    bool,
    typer.Option(
        "--flip",
        help="Embed each image and its mirror image, and take the sum, as verification sets are "
        "scored; twice the time.",
    ),
]
Raw = Annotated[
    bool,
    typer.Option("--raw/--normalise", help="Embeddings as they are, or of length 1."),
]
Dtype = Annotated[Literal["float32", "float16"], typer.Option(help="Of the column `embedding`.")]
BatchSize = Annotated[int, typer.Option(parser=positive, metavar="N")]
Workers = Annotated[
    int | None,
    typer.Option(
        parser=positive,
        metavar="N",
        help="Processes, started by Ray; default: one for each GPU, and without GPUs this one.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Join this Ray cluster (`auto` or HOST:PORT), whose nodes all see MODEL, IMAGES and "
        "OUT.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first image that cannot be embedded.")
]
PartImages = Annotated[
    int | None,
    typer.Option(
        parser=positive,
        metavar="N",
        help="Images of a part, the most that a rank does again after a kill; default: 1,024, and "
        "more for over a million images.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Of the relative paths in lists; default: the list's."),
]
Split = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of a zip or parquet files that hold several."),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of parquet files, where it is not clear."),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of parquet files, where it is not clear."),
]

Stored = Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="What `manyfaces embed` wrote.")]
Queries = Annotated[
    list[str], typer.Argument(metavar="QUERY...", help="Image files, URLs, or keys of images.")
]
QueryNetwork = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The network that EMBEDDINGS were made by, where it is not where it was.",
    ),
]
Top = Annotated[int, typer.Option(parser=positive, metavar="N", help="Images for each query.")]
Grid = Annotated[
    Path | None,
    typer.Option(metavar="GRID.png", help="Draw each query and its nearest as a row."),
]
Ivf = Annotated[
    bool,
    typer.Option(
        "--ivf",
        help="Search by inverted lists (faiss), which may miss some and holds all embeddings in "
        "memory: for thousands of queries.",
    ),
]


def embed(
    context: typer.Context,
    model: Network,
    images: ImageWords,
    out: Out,
    flip: Flip = False,
    raw: Raw = False,
    dtype: Dtype = "float32",
    batch_size: BatchSize = 128,
    workers: Workers = None,
    address: Address = None,
    strict: Strict = False,
    part_images: PartImages = None,
    root: Root = None,
    split: Split = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
) -> None:
    """Write the embeddings of many images to a parquet file.

    IMAGES are image files, folders, datasets (without what is forgotten in them), tars, zips,
    parquet files, MXNet records, text lists (a path a line, or `path<TAB>label`), or URLs of these.
    Images should be aligned as those were that the network was trained on:

    \b
      manyfaces embed runs/first photos/ --out photos.parquet
      manyfaces embed face.safetensors DATASET list.txt s3://BUCKET/faces --out embeddings

    A row is an image: source, row (its number in the source), key (its path relative to the source,
    or its key there), identity where the source has one, norm (the length of the embedding before
    it was made 1), quality_NAME for each score that the network gives, and embedding. The metadata
    name the network. Images that could not be embedded are counted, and listed in OUT.failed.jsonl
    with the reason.

    Stopped or killed, the same command goes on with the parts that are missing, on any number of
    workers. `torchrun -m manyfaces.train embed ...` works too.
    """
    cluster = _cluster(workers, address)
    if isinstance(context.obj, ProcessOwner) and works_here(cluster) and not _visible_gpus():
        restart_keeping_memory()
    # Torch takes seconds to import, which are interrupted as well.
    with listening(cluster.grace_s):
        from manyfaces.train.embedding.embed import Request, embed
        from manyfaces.train.embedding.facts import Options

        options = Options(
            flip=flip,
            normalised=not raw,
            dtype=dtype,
            root=None if root is None else str(root),
            split=split,
            image_column=image_column,
            label_column=label_column,
        )
        request = Request(
            model, tuple(images), out, options, cluster, batch_size, strict, part_images
        )
        embed(request, console)


def search(
    embeddings: Stored,
    queries: Queries,
    model: QueryNetwork = None,
    top: Top = 10,
    out: Grid = None,
    ivf: Ivf = False,
) -> None:
    """Show the images whose embeddings are nearest to others.

    A query is an image file or URL, which is embedded by the network that EMBEDDINGS were made by,
    or the key of one of the images embedded, which is then left out of its own nearest. The files
    are read once, a piece at a time, so that their size does not matter:

    \b
      manyfaces search photos.parquet someone.jpg --out nearest.png
      manyfaces search photos.parquet "holiday/0041.jpg" --top 20
    """
    from rich.table import Table

    from manyfaces.data.picture_grid import refuse_no_picture
    from manyfaces.data.progress import image_progress
    from manyfaces.train.embedding.reader import Embeddings
    from manyfaces.train.embedding.search import draw, embed_queries, read_queries
    from manyfaces.train.embedding.search import search as nearest

    if out is not None:
        refuse_no_picture(out)
    opened = Embeddings(embeddings)
    given = read_queries(opened, queries)
    units_QD = embed_queries(opened, given, model)
    with image_progress("searching", console) as progress:
        hits = nearest(opened, given, units_QD, top, progress, by_lists=ivf)
    for query, of_query in zip(given, hits, strict=True):
        table = Table("", "cosine", "identity", "key", "source", title=query.word)
        for number, hit in enumerate(of_query, 1):
            row, cosine = hit.row, f"{hit.cosine:.4f}"
            table.add_row(str(number), cosine, row.identity or "", row.key, row.source)
        for column in table.columns[2:]:
            column.overflow = "fold"  # a key is for copying
        console.print(table)
    if out is not None:
        missing = draw(opened, given, hits, out)
        say(f"picture     {out}")
        if missing:
            note(f"{missing} images are not where they were, or cannot be read; they are gray")


def _cluster(workers: int | None, address: str | None) -> Cluster:
    """Where the ranks run: in this process where it is one, else under Ray."""
    cores = len(os.sched_getaffinity(0))
    if under_torchrun():
        threads = max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
        return Cluster(launcher="process", threads_per_worker=threads)
    if workers is None and address is None:
        workers = max(_visible_gpus(), 1)
    if workers == 1 and address is None:
        return Cluster(launcher="process", workers=1, threads_per_worker=cores)
    threads = max(cores // workers, 1) if workers is not None and address is None else 1
    return Cluster(workers=workers or "auto", address=address, threads_per_worker=threads)


def _visible_gpus() -> int:
    """GPUs that this process may use, without importing torch."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return num_gpus()
    return min(num_gpus(), len([number for number in shown.split(",") if number]))
