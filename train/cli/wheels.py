"""`manyfaces manifest wheels`: everything that a machine without a network needs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyfaces.configs.errors import UserError
from manyfaces.train.cli.output import note, say
from manyfaces.train.cli.verbs import above_zero

if TYPE_CHECKING:
    from manyfaces.cluster.manifests.wheels import Gathered

MB = 1_000_000
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

NewFolder = Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")]
Python = Annotated[
    str, typer.Option(metavar="X.Y", help="The machine's Python; default: the one that runs.")
]
Platform = Annotated[
    str, typer.Option(metavar="TAG", help="manylinux_2_N_ARCH: Linux with glibc 2.N or newer.")
]
Without = Annotated[
    str,
    typer.Option(
        metavar="A,B", help="Packages that the machine has; what these alone need is left out too."
    ),
]
PieceMB = Annotated[
    float,
    typer.Option(parser=above_zero, metavar="MB", help="Size of a piece at most, in 10^6 bytes."),
]
Extras = Annotated[
    str,
    typer.Option(
        metavar="A,B",
        help="Extras of manyfaces; `dev` brings what the tests and `make gpu` need.",
    ),
]
Constraints = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Lines NAME==VERSION; default: the constraints.txt of the sources, or, where "
        "manyfaces is installed from a wheel, the versions that are installed.",
    ),
]


def wheels(
    out: NewFolder,
    python: Python = THIS_PYTHON,
    platform: Platform = "manylinux_2_28_x86_64",
    without: Without = "",
    piece_mb: PieceMB = 60,
    extras: Extras = "dev",
    constraints: Constraints = None,
) -> None:
    """Gather wheels for a machine without a network.

    manyfaces' own wheel and all that it needs there, at the pinned versions, from the index that
    pip uses here. OUT gets folders piece-01, piece-02, .. that can be carried one by one, a
    manifest with the SHA-256 of each file, and install.sh, which compares, joins and installs them:

    \b
      manyfaces manifest wheels --python 3.12 --without torch,triton OUT
      bash OUT/install.sh                      on that machine, in the environment of its python3
    """
    from manyfaces.cluster.manifests.target import Target
    from manyfaces.cluster.manifests.wheels import gather, pinned

    target = Target(python, platform)
    pins, source = pinned(constraints)
    say(f"versions   {source}")
    gathered = gather(
        out,
        target,
        pins,
        extras=_words(extras),
        without=_words(without),
        piece_bytes=max(1, round(piece_mb * MB)),
        tell=say,
    )
    _tell(gathered, _words(without))
    say(
        f"{out}: manyfaces {gathered.version} for Python {python} on {platform}: "
        f"{gathered.num_wheels} wheels, {gathered.num_bytes / MB:,.0f} MB in "
        f"{gathered.num_pieces} pieces of at most {piece_mb:g} MB"
    )
    if missing := gathered.choice.missing:
        raise UserError(
            f"{out}: not all of it could be had: {', '.join(sorted(missing))}, see above; "
            "install.sh installs the rest once the machine has these from elsewhere"
        )
    say(f"there      bash {out.name}/install.sh, with PYTHON=ENV/bin/python before it for ENV")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _tell(gathered: "Gathered", without: list[str]) -> None:
    """What is not as a person would expect, a line each."""
    from difflib import get_close_matches

    from packaging.utils import canonicalize_name

    choice = gathered.choice
    for unneeded in sorted({*map(canonicalize_name, without)} - choice.there):
        near = get_close_matches(unneeded, choice.wheels, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        note(f"--without {unneeded}: nothing of this needs it{meant}")
    for name, needed in sorted(choice.bound.items()):
        note(f"{name} is left out: it goes with {needed} alone, and the machine has its own")
    for name in sorted(choice.built):
        note(f"{name} was built here: the index has its source distribution only")
    if choice.unpinned:
        note(f"no version is pinned of {', '.join(sorted(choice.unpinned))}: the newest that goes")
    for name, why in sorted(choice.missing.items()):
        note(f"{name} cannot be had: {why}")
