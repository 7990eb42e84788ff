"""`manyfaces head VERB ...`: which samples lie far from their class; identities come and go in a
committed checkpoint."""

import argparse
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from manyfaces.configs.schema import UserError

if TYPE_CHECKING:
    from manyfaces.data.dataset.mixture import AnyDataset
    from manyfaces.data.dataset.names import Names

console = Console(soft_wrap=True, highlight=False)


def add_verbs(edits, verb: Callable[..., argparse.ArgumentParser]) -> None:  # type: ignore[no-untyped-def]
    """Add the verbs to `edits`; `verb(edits, name, handler, help)` makes the parser of one."""
    one = verb(
        edits,
        "report",
        head_report,
        "which samples lie far from their class, as a list to clean the dataset by",
    )
    one.add_argument("run", type=Path, help="runs/NAME, or one of its checkpoint folders")
    one.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for cleaning.parquet, cleaning.png and drop.txt",
    )
    one.add_argument("--dataset", help="folder or URL; default: what the run was trained on")
    one.add_argument(
        "--angle",
        type=float,
        default=75.0,
        help="degrees from the class's dominant sub-centre; beyond it a sample is listed",
    )
    remove = verb(edits, "remove", head_remove, "a checkpoint without some identities")
    add = verb(edits, "add", head_add, "a checkpoint with new identities behind the others")
    remap = verb(
        edits,
        "remap",
        head_remap,
        "a checkpoint whose head is for another dataset: class rows by identity name, in its order",
    )
    merge = verb(
        edits,
        "merge",
        head_merge,
        "a checkpoint with another one's identities behind its own; a name that both have keeps "
        "CKPT's row",
    )
    for one in (remove, add, remap, merge):
        one.add_argument(
            "checkpoint",
            type=Path,
            metavar="CKPT",
            help="RUN/checkpoints/step-..., or RUN for its newest",
        )
        if one is merge:
            one.add_argument(
                "other",
                type=Path,
                metavar="OTHER",
                help="likewise; its rows are taken as they are, so both backbones should share an "
                "embedding space: one is fine-tuned from the other",
            )
        one.add_argument(
            "out",
            type=Path,
            metavar="OUT",
            help="a new folder, such as edited/checkpoints/step-00000500",
        )
    which = remove.add_mutually_exclusive_group(required=True)
    which.add_argument("--identity", nargs="+", action="extend", metavar="NAME")
    which.add_argument("--names", type=Path, metavar="FILE", help="a name a line")
    add.add_argument("--names", type=Path, metavar="FILE", required=True, help="a name a line")
    start = (
        "a new row starts as the mean of its images there, under the checkpoint's backbone; "
        "without it as a fresh head's"
    )
    add.add_argument(
        "--dataset", action="append", help=f"{start}; given several times: as a mixture's parts"
    )
    remap.add_argument(
        "--dataset",
        action="append",
        required=True,
        help="given several times: as a mixture's parts, in their order",
    )
    remap.add_argument(
        "--part",
        help=(
            "from a dataset to a mixture that has it, or back: what the mixture's names have "
            "before the slash"
        ),
    )
    remap.add_argument(
        "--fresh",
        action="store_true",
        help="identities that the head lacks start as a fresh head's, not as their images' mean",
    )


def head_report(arguments: argparse.Namespace) -> None:
    from manyfaces.train.curation.cleaning import report

    report(arguments.run, arguments.out, arguments.dataset, arguments.angle, console)


def head_remove(arguments: argparse.Namespace) -> None:
    from manyfaces.data.dataset.names import Names
    from manyfaces.train.curation.head_edit import remove

    wanted = (
        _names(arguments.names)
        if arguments.names
        else Names.parse("\n".join(arguments.identity).encode())
    )
    _tell(arguments.out, remove(arguments.checkpoint, arguments.out, wanted))


def head_add(arguments: argparse.Namespace) -> None:
    from manyfaces.train.curation.head_edit import add

    dataset = _open(arguments.dataset) if arguments.dataset else None
    _tell(arguments.out, add(arguments.checkpoint, arguments.out, _names(arguments.names), dataset))


def head_remap(arguments: argparse.Namespace) -> None:
    from manyfaces.train.curation.head_edit import remap

    _tell(
        arguments.out,
        remap(
            arguments.checkpoint,
            arguments.out,
            _open(arguments.dataset),
            arguments.fresh,
            arguments.part,
        ),
    )


def head_merge(arguments: argparse.Namespace) -> None:
    from manyfaces.train.curation.head_edit import merge

    _tell(arguments.out, merge(arguments.checkpoint, arguments.other, arguments.out))


def _names(file: Path) -> "Names":
    from manyfaces.data.dataset.names import Names

    lines = [line for line in file.read_bytes().splitlines() if line]
    if not lines:
        raise UserError(f"{file}: no name in it; give one a line")
    return Names.parse(b"\n".join(lines))


def _open(paths: list[str]) -> "AnyDataset":
    from manyfaces.data.dataset.index import open_dataset, verify
    from manyfaces.data.dataset.mixture import join

    datasets = [open_dataset(path) for path in paths]
    for dataset in datasets:
        verify(dataset, "sizes")
    return (
        datasets[0]
        if len(datasets) == 1
        else join(datasets, [Fraction(1, len(datasets))] * len(datasets))
    )


def _tell(out: Path, counts: dict[str, int]) -> None:
    console.print(
        escape(f"{out}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}")
    )
    console.print(
        f"train on with run.resume_from={escape(str(out))}, another run.name and a dataset of "
        "these identities in this order"
    )
