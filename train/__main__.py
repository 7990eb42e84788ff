"""The command line: `manyfaces VERB ...`. Everything heavy is imported by the verb that needs it."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from manyfaces.configs.schema import Config, UserError

console = Console(soft_wrap=True, highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for what a person has to mend."""
    arguments = parser().parse_args(argv)
    try:
        arguments.verb(arguments)
    except UserError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/bold red] {_escaped(str(error))}")
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/bold red] {_escaped(what)}")
        return 2
    except KeyboardInterrupt:
        Console(stderr=True, soft_wrap=True, highlight=False).print("stopped; the same command resumes from the last checkpoint")
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="manyfaces", description="Train identity encoders on web-scale face data.")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(parent, name: str, run, help: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        one: argparse.ArgumentParser = parent.add_parser(name, help=help, description=help)
        one.set_defaults(verb=run)
        return one

    def config_words(one: argparse.ArgumentParser) -> None:
        one.add_argument("config", help="a recipe (YAML)")
        one.add_argument("overrides", nargs="*", metavar="path.to.key=value")

    one = verb(verbs, "train", train, "train, or resume: the same command goes on from the last checkpoint")
    config_words(one)
    one.add_argument("--address", help="join this Ray cluster (`auto` or HOST:PORT), as cluster.address does")
    config_words(verb(verbs, "check", check, "show the resolved configuration and the plan, without running anything"))

    one = verb(verbs, "evaluate", evaluate, "score a run's newest checkpoint on verification sets")
    one.add_argument("run", type=Path, help="runs/NAME, or one of its checkpoint folders")
    one.add_argument("--pairs", type=Path, action="append", required=True, help="an InsightFace .bin; may be repeated")
    one.add_argument("--batch-size", type=positive_int, default=200)

    one = verb(verbs, "submit", submit, "ship code and configuration to a Ray cluster and start the job")
    config_words(one)
    one.add_argument("--address", required=True, help="the cluster's dashboard, http://HOST:8265")

    follow = verbs.add_parser("jobs", help="follow submitted jobs").add_subparsers(required=True, metavar="WHAT")
    for name, run, help in (("status", job_status, "how it stands"), ("logs", job_logs, "what it printed"), ("stop", job_stop, "stop it")):
        one = verb(follow, name, run, help)
        one.add_argument("id")
        one.add_argument("--address", default="http://127.0.0.1:8265")
    verb(follow, "list", job_list, "all of them").add_argument("--address", default="http://127.0.0.1:8265")

    sets = verbs.add_parser("data", help="make and check datasets").add_subparsers(required=True, metavar="WHAT")
    one = verb(sets, "convert", data_convert, "a folder of identity folders to a dataset")
    one.add_argument("source", type=Path)
    one.add_argument("out", type=Path)
    one = verb(sets, "synth", data_synth, "synthetic identities")
    one.add_argument("out", type=Path)
    one.add_argument("--identities", type=positive_int, required=True)
    one.add_argument("--images", type=positive_int, required=True, help="of each identity")
    for writer in (one, sets.choices["convert"]):
        writer.add_argument("--seed", type=int, default=0)
        writer.add_argument("--processes", type=positive_int, help="default: all cores")
        writer.add_argument("--shard-images", type=positive_int, default=8192)
    one = verb(sets, "index", data_index, "index WebDataset shards of others, in place")
    one.add_argument("folder", type=Path)
    one = verb(sets, "pairs", data_pairs, "draw verification pairs from a dataset of held-out identities")
    one.add_argument("dataset", type=Path)
    one.add_argument("out", type=Path, help="OUT.bin")
    one.add_argument("--count", type=positive_int, default=6000)
    one.add_argument("--seed", type=int, default=0)
    return top


def positive_int(word: str) -> int:
    number = int(word)
    if number < 1:
        raise ValueError
    return number


def train(arguments: argparse.Namespace) -> None:
    if arguments.address:
        arguments.overrides.append(f"cluster.address={arguments.address}")
    config = _load(arguments)
    from manyfaces.train.run import run

    run(config, console)


def check(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    from manyfaces.configs import load, plan

    print(load.dump(config))  # noqa: T201 - for pipes, as it is
    images, identities, source = _dataset_size(config)
    for label, text in plan.plan(config, images, identities, plan.world_size(config)).lines():
        console.print(f"{label:28} {text}")
    console.print(f"{'dataset size from':28} {source}")


def evaluate(arguments: argparse.Namespace) -> None:
    from rich.progress import Progress
    from rich.table import Table

    from manyfaces.train.evaluate import evaluate_run

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("embedding", total=None)
        checkpoint, outcomes = evaluate_run(
            arguments.run, arguments.pairs, arguments.batch_size, lambda done, total: bar.update(task, completed=done, total=total)
        )
    table = Table("set", "pairs", "10-fold", "best", "AUC", "TAR 1e-2", "TAR 1e-3")
    for name, r in ((o.name, o.report) for o in outcomes):
        tars = [f"{t:.2%}" if (t := r.tar_at_far[far]) is not None else "too few" for far in ("1e-02", "1e-03")]
        table.add_row(
            name,
            f"{r.pairs:,}",
            f"{r.accuracy:.2%} ± {r.accuracy_std:.2%}",
            f"{r.best_accuracy:.2%}",
            f"{r.auc:.4f}" if r.auc is not None else "one kind",
            *tars,
        )
    console.print(table)
    console.print(f"checkpoint  {checkpoint}\nreport      {checkpoint.parent.parent / 'evaluation'}")


def submit(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    from manyfaces.cluster.jobs import Jobs
    from manyfaces.configs.load import dump
    from manyfaces.train.run import absolute

    config = absolute(config)
    console.print(f"every node must see run.dir {config.run.dir} and data.path {config.data.path}")
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
    from manyfaces.data.convert import convert_folder

    options = {"seed": arguments.seed, "processes": arguments.processes, "shard_images": arguments.shard_images}
    _tell(arguments.out, convert_folder(arguments.source, arguments.out, **options))


def data_synth(arguments: argparse.Namespace) -> None:
    from manyfaces.data.convert import synthesise

    options = {"seed": arguments.seed, "processes": arguments.processes, "shard_images": arguments.shard_images}
    _tell(arguments.out, synthesise(arguments.out, arguments.identities, arguments.images, **options))


def data_index(arguments: argparse.Namespace) -> None:
    from manyfaces.data.write import index_folder

    _tell(arguments.folder, index_folder(arguments.folder))


def data_pairs(arguments: argparse.Namespace) -> None:
    from manyfaces.data.index import open_dataset
    from manyfaces.data.pairs import draw_pairs, write_bin

    write_bin(arguments.out, *draw_pairs(open_dataset(arguments.dataset), arguments.count, arguments.seed))
    console.print(f"{arguments.out}: {arguments.count:,} pairs")


def _tell(out: Path, manifest) -> None:  # type: ignore[no-untyped-def]
    from manyfaces.data.write import DROPPED

    size = "x".join(map(str, manifest.image_px)) if manifest.image_px else "several sizes"
    console.print(
        f"{out}: {manifest.num_images:,} images ({size}) of {manifest.num_identities:,} identities in {len(manifest.shards)} shards",
    )
    if (out / DROPPED).exists() and (dropped := len((out / DROPPED).read_text().splitlines())):
        console.print(f"{dropped:,} images could not be used: see {out / DROPPED}")


def _load(arguments: argparse.Namespace) -> Config:
    from manyfaces.configs.load import load

    return load(arguments.config, arguments.overrides)


def _dataset_size(config: Config) -> tuple[int, int, str]:
    """Images, identities and where the numbers come from. Raises `UserError` where nothing tells them."""
    import json

    manifest = Path(config.data.path) / "manyfaces.json"
    if config.data.path and manifest.is_file():
        facts = json.loads(manifest.read_text())
        return facts["num_images"], facts["num_identities"], str(manifest)
    if config.data.expect_images is None or config.data.expect_identities is None:
        raise UserError(f"the plan needs the dataset's size: {manifest} is not there; set data.path, or data.expect_images and _identities")
    return config.data.expect_images, config.data.expect_identities, "data.expect_images and data.expect_identities; data.path is not here"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    sys.exit(main())
