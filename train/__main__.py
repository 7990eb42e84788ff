"""The command line: `manyfaces VERB ...`. Everything heavy is imported by the verb that needs
it."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from manyfaces.configs.schema import Config, UserError
from manyfaces.train.cli import head_verbs

console = Console(soft_wrap=True, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for what a person has to mend."""
    arguments = parser().parse_args(argv)
    try:
        arguments.verb(arguments)
    except UserError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/bold red] {_escaped(str(error))}"
        )
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/bold red] {_escaped(what)}"
        )
        return 2
    except KeyboardInterrupt:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            "stopped; the same command resumes from the last checkpoint"
        )
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="manyfaces", description="Train identity encoders on web-scale face data."
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(parent, name: str, run, help: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        one: argparse.ArgumentParser = parent.add_parser(name, help=help, description=help)
        one.set_defaults(verb=run)
        return one

    def config_words(one: argparse.ArgumentParser) -> None:
        one.add_argument("config", help="a recipe (YAML)")
        one.add_argument("overrides", nargs="*", metavar="path.to.key=value")

    one = verb(
        verbs, "train", train, "train, or resume: the same command goes on from the last checkpoint"
    )
    config_words(one)
    one.add_argument(
        "--address", help="join this Ray cluster (`auto` or HOST:PORT), as cluster.address does"
    )
    one = verb(
        verbs,
        "check",
        check,
        "show the resolved configuration and the plan, without running anything",
    )
    config_words(one)
    one.add_argument(
        "--explain",
        metavar="KEY",
        help="only say what may stand at and below this key, and when to use what: `head`",
    )
    one.add_argument(
        "--memory-gb",
        type=float,
        help=(
            "memory of a worker, 10^9 bytes; default 80 of a GPU, else its share of this computer's"
        ),
    )

    one = verb(verbs, "evaluate", evaluate, "score a run's newest checkpoint on verification sets")
    one.add_argument("run", type=Path, help="runs/NAME, or one of its checkpoint folders")
    one.add_argument(
        "--pairs",
        type=Path,
        action="append",
        required=True,
        help="an InsightFace .bin; may be repeated",
    )
    one.add_argument("--batch-size", type=positive_int, default=200)

    one = verb(
        verbs, "submit", submit, "ship code and configuration to a Ray cluster and start the job"
    )
    config_words(one)
    one.add_argument("--address", required=True, help="the cluster's dashboard, http://HOST:8265")

    follow = verbs.add_parser("jobs", help="follow submitted jobs").add_subparsers(
        required=True, metavar="WHAT"
    )
    for name, run, help in (
        ("status", job_status, "how it stands"),
        ("logs", job_logs, "what it printed"),
        ("stop", job_stop, "stop it"),
    ):
        one = verb(follow, name, run, help)
        one.add_argument("id")
        one.add_argument("--address", default="http://127.0.0.1:8265")
    verb(follow, "list", job_list, "all of them").add_argument(
        "--address", default="http://127.0.0.1:8265"
    )

    sets = verbs.add_parser("data", help="make and check datasets").add_subparsers(
        required=True, metavar="WHAT"
    )
    one = verb(
        sets,
        "convert",
        data_convert,
        "image folders, lists, zips, MXNet records or parquet files to a dataset",
    )
    one.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SRC",
        help="recognised by what it holds; several are merged",
    )
    one.add_argument("out", type=Path)
    one.add_argument(
        "--root", type=Path, help="of a list's relative paths; default: the list's folder"
    )
    one.add_argument(
        "--image-column", metavar="NAME", help="of parquet files, where it cannot be told"
    )
    one.add_argument(
        "--label-column", metavar="NAME", help="of parquet files, where it cannot be told"
    )
    one.add_argument(
        "--reencode",
        type=jpeg_quality,
        metavar="QUALITY",
        help="write every image anew; default: bytes are kept",
    )
    one.add_argument("--resize", type=positive_int, metavar="PX", help="to PX x PX")
    one.add_argument(
        "--align",
        type=Path,
        metavar="LANDMARKS",
        help="to the 112x112 template; lines `path_or_key x1 y1 ... x5 y5`",
    )
    one.add_argument(
        "--min-images", type=positive_int, default=1, help="leave out identities with fewer"
    )
    one.add_argument(
        "--identity-map",
        type=Path,
        metavar="FILE",
        help="lines `name<TAB>merged name`; several sources: `source/name`",
    )
    one = verb(sets, "synth", data_synth, "synthetic identities")
    one.add_argument("out", type=Path)
    one.add_argument("--identities", type=positive_int, required=True)
    one.add_argument("--images", type=positive_int, required=True, help="of each identity")
    for writer in (one, sets.choices["convert"]):
        writer.add_argument("--seed", type=int, default=0)
        writer.add_argument("--processes", type=positive_int, help="default: all cores")
        writer.add_argument("--shard-images", type=positive_int, default=8192)
    one = verb(
        sets, "index", data_index, "index WebDataset shards of others, in place or at an URL"
    )
    one.add_argument("folder", type=Path, metavar="FOLDER_OR_URL")
    one.add_argument(
        "--out", type=Path, help="of shards at an URL that cannot be written: folder for the index"
    )
    one = verb(
        sets,
        "check",
        data_check,
        "hash every byte and decode every image; exit code 2 if anything is broken",
    )
    one.add_argument("dataset", type=Path)
    one.add_argument("--processes", type=positive_int, help="default: all cores")
    one = verb(
        sets, "stats", data_stats, "images, identities, images of an identity, bytes and sizes"
    )
    one.add_argument("dataset", type=Path)
    one = verb(sets, "sample", data_sample, "draw images of a dataset in a grid")
    one.add_argument("dataset", type=Path)
    one.add_argument("--out", type=Path, required=True, help="GRID.png")
    one.add_argument(
        "--identity", help="a class id, or a line of identities.txt; default: random images"
    )
    one.add_argument("--count", type=positive_int, help="images; default 64, with --augmented 8")
    one.add_argument("--seed", type=int, default=0, help="of the random images")
    one.add_argument(
        "--augmented",
        metavar="CONFIG",
        help="a recipe: each image as it is and as its data.augment changes it",
    )
    one = verb(
        sets, "pairs", data_pairs, "draw verification pairs from a dataset of held-out identities"
    )
    one.add_argument("dataset", type=Path)
    one.add_argument("out", type=Path, help="OUT.bin")
    one.add_argument("--count", type=positive_int, default=6000)
    one.add_argument("--seed", type=int, default=0)
    one = verb(
        sets,
        "forget",
        data_forget,
        "from a job's next start these are never read and their class centres are gone",
    )
    one.add_argument("dataset", type=Path)
    one.add_argument(
        "--identity", action="append", default=[], help="class id or name; may be repeated"
    )
    one.add_argument("--keys", type=Path, help="file of samples, a line each: KEY or SHARD:KEY")
    one = verb(sets, "compact", data_compact, "a new dataset without what is forgotten")
    one.add_argument("dataset", type=Path)
    one.add_argument("out", type=Path)

    head_verbs.add_verbs(
        verbs.add_parser(
            "head", help="look into a trained head; identities come and go"
        ).add_subparsers(required=True, metavar="WHAT"),
        verb,
    )
    return top


def positive_int(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def jpeg_quality(word: str) -> int:
    number = int(word)
    if not 1 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{word}: a JPEG quality is 1 to 100")
    return number


def train(arguments: argparse.Namespace) -> None:
    if arguments.address:
        arguments.overrides.append(f"cluster.address={arguments.address}")
    config = _load(arguments)
    from manyfaces.train.run import run

    run(config, console)


def check(arguments: argparse.Namespace) -> None:
    if arguments.explain is not None:
        from manyfaces.configs.explain import describe

        for line in describe(arguments.explain):
            print(line)  # noqa: T201 - for pipes, as it is
        return
    config = _load(arguments)
    from manyfaces.configs import load, plan
    from manyfaces.data.dataset.size import dataset_size

    print(load.dump(config))  # noqa: T201 - for pipes, as it is
    images, identities, sources = dataset_size(config.data)
    found = plan.plan(config, images, identities, plan.world_size(config))
    for label, text in (
        found.lines()
        + plan.head_lines(config, found, plan.machine(config, arguments.memory_gb))
        + sources
    ):
        console.print(f"{label:32} {text}")


def evaluate(arguments: argparse.Namespace) -> None:
    from rich.progress import Progress
    from rich.table import Table

    from manyfaces.train.evaluation.evaluate import evaluate_run

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("embedding", total=None)
        checkpoint, outcomes = evaluate_run(
            arguments.run,
            arguments.pairs,
            arguments.batch_size,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    table = Table("set", "pairs", "10-fold", "best", "AUC", "TAR 1e-2", "TAR 1e-3")
    for name, r in ((o.name, o.report) for o in outcomes):
        tars = [
            f"{t:.2%}" if (t := r.tar_at_far[far]) is not None else "too few"
            for far in ("1e-02", "1e-03")
        ]
        table.add_row(
            name,
            f"{r.pairs:,}",
            f"{r.accuracy:.2%} ± {r.accuracy_std:.2%}",
            f"{r.best_accuracy:.2%}",
            f"{r.auc:.4f}" if r.auc is not None else "one kind",
            *tars,
        )
    console.print(table)
    console.print(
        f"checkpoint  {checkpoint}\nreport      {checkpoint.parent.parent / 'evaluation'}"
    )


def submit(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    from manyfaces.cluster.jobs import Jobs
    from manyfaces.configs.load import dump
    from manyfaces.train.run import absolute

    config = absolute(config)
    console.print(
        f"every node must see run.dir {config.run.dir} and the data in "
        f"{' and '.join(config.data.paths)}"
    )
    console.print(Jobs(arguments.address).submit(config.run.name, dump(config)))


def job_status(arguments: argparse.Namespace) -> None:
    from manyfaces.cluster.jobs import Jobs

    console.print(Jobs(arguments.address).status(arguments.id))


def job_logs(arguments: argparse.Namespace) -> None:
    from manyfaces.cluster.jobs import Jobs

    sys.stdout.write(Jobs(arguments.address).logs(arguments.id))


def job_stop(arguments: argparse.Namespace) -> None:
    from manyfaces.cluster.jobs import Jobs

    stopped = Jobs(arguments.address).stop(arguments.id)
    console.print(f"{arguments.id}: {'stopping' if stopped else 'was not running'}")


def job_list(arguments: argparse.Namespace) -> None:
    from manyfaces.cluster.jobs import Jobs

    for job, status, name in Jobs(arguments.address).list():
        console.print(f"{job}  {status:10} {name}")


def data_convert(arguments: argparse.Namespace) -> None:
    from manyfaces.data.sources.convert import convert
    from manyfaces.data.sources.edit import Edit
    from manyfaces.data.sources.report import lines

    same = (
        "seed",
        "processes",
        "shard_images",
        "root",
        "image_column",
        "label_column",
        "min_images",
        "identity_map",
    )
    edit = Edit(arguments.reencode, arguments.resize, align=arguments.align is not None)
    options = {name: getattr(arguments, name) for name in same}
    _tell(
        arguments.out,
        convert(arguments.sources, arguments.out, edit=edit, landmarks=arguments.align, **options),
    )
    for line in lines(arguments.out):
        console.print(_escaped(line))


def data_synth(arguments: argparse.Namespace) -> None:
    from manyfaces.data.sources.convert import synthesise

    options = {
        "seed": arguments.seed,
        "processes": arguments.processes,
        "shard_images": arguments.shard_images,
    }
    _tell(
        arguments.out, synthesise(arguments.out, arguments.identities, arguments.images, **options)
    )


def data_index(arguments: argparse.Namespace) -> None:
    from manyfaces.data.store.remote import url_of

    if (url := url_of(arguments.folder)) is None:
        from manyfaces.data.dataset.write import index_folder

        if arguments.out is not None:
            raise UserError(
                "--out is for shards at an URL; a folder's index is written beside its shards"
            )
        return _tell(arguments.folder, index_folder(arguments.folder))
    from manyfaces.data.dataset.index_url import index_url

    manifest, path = index_url(url, arguments.out)
    _tell(path, manifest)
    console.print(f"the shards stay where they are; train with data.path={path}")


def data_pairs(arguments: argparse.Namespace) -> None:
    from manyfaces.data.dataset.index import open_dataset
    from manyfaces.data.sources.pairs import draw_pairs, write_bin

    write_bin(
        arguments.out, *draw_pairs(open_dataset(arguments.dataset), arguments.count, arguments.seed)
    )
    console.print(f"{arguments.out}: {arguments.count:,} pairs")


def data_forget(arguments: argparse.Namespace) -> None:
    from manyfaces.data.dataset.forgotten import forget
    from manyfaces.data.dataset.index import open_dataset

    keys = (
        [line.strip() for line in arguments.keys.read_text().splitlines() if line.strip()]
        if arguments.keys
        else []
    )
    if not keys and not arguments.identity:
        raise UserError("nothing to forget: give --identity ID or --keys FILE")
    known = forget(open_dataset(arguments.dataset), arguments.identity, keys)
    console.print(
        f"{arguments.dataset}: forgotten are {len(known.identities):,} identities and "
        f"{len(known.samples):,} single samples"
    )
    console.print(
        "jobs heed it from their next start or resume; checkpoints and shards of before still hold "
        "them"
    )


def data_check(arguments: argparse.Namespace) -> None:
    from manyfaces.data.dataset.check import CHECK, check
    from manyfaces.data.dataset.index import open_dataset

    dataset = open_dataset(arguments.dataset)
    faults = check(dataset, arguments.processes)
    report = dataset.path / CHECK
    if not faults:
        console.print(
            f"{dataset.path}: {dataset.manifest.num_images:,} images, every byte hashed and every "
            "image decoded: all whole"
        )
        return
    for fault in faults[:20]:
        console.print(
            _escaped(
                f"{fault['shard']}:{fault['key']}: {fault['reason']}"
                if fault["key"]
                else f"{fault['shard']}: {fault['reason']}"
            )
        )
    if len(faults) > 20:
        console.print(f"and {len(faults) - 20:,} more, all in {report}")
    raise UserError(
        f"{dataset.path}: broken in {len(faults):,} places, listed in {report}; restore the "
        "shards, or leave the samples out"
    )


def data_stats(arguments: argparse.Namespace) -> None:
    from rich.table import Table

    from manyfaces.data.dataset.index import open_dataset
    from manyfaces.data.dataset.inspect import stats
    from manyfaces.data.sources.report import HISTOGRAM, histogram

    dataset = open_dataset(arguments.dataset)
    s = stats(dataset)
    picture = dataset.path / HISTOGRAM
    histogram(s.images_of_identity_C[s.images_of_identity_C > 0], picture)
    per = s.images_of_identity_C
    least, mean, most = s.jpeg_bytes
    sizes = ", ".join(
        f"{'unreadable' if px is None else f'{px[1]}x{px[0]}'} {share / s.sizes_read:.1%}"
        for px, share in s.sizes[:5]
    )
    table = Table(show_header=False)
    for label, text in {
        "images": f"{s.images:,}",
        "identities": f"{s.identities:,}",
        "images of an identity": f"min {per.min():,}, median {s.median:g}, "
        f"mean {per.mean():.1f}, max {per.max():,}",
        "its deciles": " ".join(f"{n:,}" for n in s.deciles),
        "bytes": f"{s.shard_bytes / 1e6:,.1f} MB in {s.shards:,} shards",
        "bytes of a JPEG": f"min {least:,}, mean {mean:,.0f}, max {most:,}",
        "width x height": sizes
        + (f" and {len(s.sizes) - 5} more" if len(s.sizes) > 5 else "")
        + f" of {s.sizes_read:,}",
        "histogram": str(picture),
    }.items():
        table.add_row(label, text)
    console.print(table)


def data_sample(arguments: argparse.Namespace) -> None:
    from manyfaces.data.dataset.index import open_dataset
    from manyfaces.data.dataset.inspect import sample

    config = None
    if arguments.augmented:
        from manyfaces.configs.load import load

        config = load(arguments.augmented, [])
    what, broken = sample(
        open_dataset(arguments.dataset),
        arguments.out,
        identity=arguments.identity,
        count=arguments.count,
        seed=arguments.seed,
        config=config,
    )
    console.print(
        f"{arguments.out}: {_escaped(what)}"
        + (f"; {broken} could not be decoded" if broken else "")
    )


def data_compact(arguments: argparse.Namespace) -> None:
    from manyfaces.data.dataset.forgotten import compact
    from manyfaces.data.dataset.index import open_dataset

    _tell(arguments.out, compact(open_dataset(arguments.dataset), arguments.out))


def _tell(out: Path | str, manifest) -> None:  # type: ignore[no-untyped-def]
    size = "x".join(map(str, manifest.image_px)) if manifest.image_px else "several sizes"
    console.print(
        f"{out}: {manifest.num_images:,} images ({size}) of {manifest.num_identities:,} identities "
        f"in {len(manifest.shards)} shards",
    )


def _load(arguments: argparse.Namespace) -> Config:
    from manyfaces.configs.load import load

    return load(arguments.config, arguments.overrides)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    sys.exit(main())
