"""Everything that manyfaces needs on a machine without a network: wheels for its Python and
platform, in pieces of bounded size, with the script that installs them there."""

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from manyfaces.cluster.manifests import join_wheels
from manyfaces.cluster.manifests.own_wheel import own_wheel, sources
from manyfaces.cluster.manifests.target import Target
from manyfaces.cluster.manifests.wheel_choice import WheelChoice, choose, supports
from manyfaces.cluster.manifests.wheel_index import Fetched, WheelIndex
from manyfaces.cluster.manifests.wheel_pieces import write_pieces
from manyfaces.configs.errors import UserError

CONSTRAINTS = "constraints.txt"
INSTALL = "install.sh"
_SHOWN = 4
"""Names of packages in a line."""

_INSTALL = """\
#!/usr/bin/env bash
# Installs manyfaces {version} with the wheels beside this file; nothing is downloaded.
#
#   bash install.sh                             into the environment of python3
#   PYTHON=ENV/bin/python bash install.sh       into another one
#
# It needs bash and a Python {python} with pip. An environment of its own that sees the packages of
# this machine: python{python} -m venv --system-site-packages ENV
set -euo pipefail
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
python=${{PYTHON:-python3}}

fail() {{
    echo "error: $*" >&2
    exit 2
}}

remedy="PYTHON=python{python} bash install.sh"
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
    fail "$python does not run; name a Python {python}: $remedy"
[ "$found" = {python} ] ||
    fail "$python is Python $found, and the wheels are for {python}: $remedy"
"$python" -m pip --version >/dev/null 2>&1 ||
    fail "$python has no pip: $python -m ensurepip, or install your system's package of it"

joined=$(mktemp -d)
trap 'rm -rf "$joined"' EXIT
"$python" "$here/join_wheels.py" "$here" "$joined"
install() {{
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$@" ||
        fail "pip has not installed the wheels; its own lines stand above"
}}
install "$joined"/*.whl
install --force-reinstall "$joined"/manyfaces-*.whl # also where the same version was there before
"$python" -m pip check || echo "note: not all that is installed goes together, see above" >&2
"$python" -m manyfaces.train --version ||
    fail "manyfaces is installed and does not start; Python's own lines stand above"
"""


@dataclass(frozen=True)
class Gathered:
    """What stands in the folder now."""

    version: str
    """manyfaces' own."""
    choice: WheelChoice
    num_wheels: int
    num_pieces: int
    num_bytes: int
    """The bytes of all wheels together."""


def pinned(file: Path | None) -> tuple[dict[str, str], str]:
    """The versions to take by normalised name, and where they come from: `file`, or the
    constraints.txt of the sources that run, or, where manyfaces was installed from a wheel, which
    does not hold that file, the versions that are installed beside it and so are known to work.

    Raises `UserError` for a line that pins no version.
    """
    root = sources()
    if file is None and root is not None:
        file = root / CONSTRAINTS
    if file is None:
        installed: dict[str, str] = {
            canonicalize_name(each.metadata["Name"]): Version(each.version).public
            for each in distributions()
        }
        return installed, "the versions that are installed here"
    if not file.is_file():
        raise UserError(f"{file}: no such file of constraints")
    pins: dict[str, str] = {}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if text:
            name, version = _pin(text, f"{file}:{number}")
            pins[name] = version
    return pins, str(file)


def _pin(text: str, where: str) -> tuple[str, str]:
    try:
        requirement = Requirement(text)
        [specifier] = requirement.specifier
    except (InvalidRequirement, ValueError):
        raise UserError(f"{where}: {text!r}: expected NAME==VERSION") from None
    if specifier.operator != "==":
        raise UserError(f"{where}: {text!r}: expected NAME==VERSION")
    return canonicalize_name(requirement.name), specifier.version


def gather(
    out: Path,
    target: Target,
    pins: Mapping[str, str],
    *,
    extras: Collection[str],
    without: Collection[str],
    piece_bytes: int,
    tell: Callable[[str], None],
) -> Gathered:
    """Write `out`, a new folder: manyfaces' own wheel and all that it needs on the target with
    these extras, without the packages that the machine has and what these alone need. `tell` is
    given a line before each download.

    Raises `UserError` where `out` exists, the target's Python is not supported, or the index does
    not answer. What cannot be had is told in the result, and install.sh asks for it there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; give a new folder")
    names = {canonicalize_name(name) for name in without}
    with tempfile.TemporaryDirectory(prefix="manyfaces-wheels-") as work:
        own = own_wheel(_new(work, "own"))
        if versions := supports(own, target):
            raise UserError(f"--python {target.python}: manyfaces is for Python {versions}")
        index = WheelIndex(target, _new(work, "wheels"))

        def fetch(wanted: Mapping[str, str]) -> Fetched:
            if wanted:
                tell(f"fetching   {_shortened(sorted(wanted))}")
            return index.fetch(wanted)

        choice = choose(own, extras, pins, names, target, fetch)
        wheels = [own, *choice.wheels.values()]
        out.mkdir(parents=True, exist_ok=True)
        entries = write_pieces(wheels, out, piece_bytes)
    version = str(parse_wheel_filename(own.name)[1])
    _write_rest(out, target, version, choice, entries)
    return Gathered(
        version=version,
        choice=choice,
        num_wheels=len(entries),
        num_pieces=len(list(out.glob("piece-*"))),
        num_bytes=sum(entry["bytes"] for entry in entries),
    )


def _new(work: str, name: str) -> Path:
    folder = Path(work) / name
    folder.mkdir()
    return folder


def _shortened(names: Sequence[str]) -> str:
    shown, more = ", ".join(names[:_SHOWN]), len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _write_rest(
    out: Path,
    target: Target,
    version: str,
    choice: WheelChoice,
    entries: Sequence[Mapping[str, Any]],
) -> None:
    """Write the manifest, the script that installs, and its helper, beside the pieces."""
    has = dict.fromkeys(sorted(choice.there), "this machine was said to have it (--without)")
    manifest = {
        "manyfaces": version,
        "python": target.python,
        "machine": target.machine,
        "glibc": target.glibc,
        "not_gathered": {**has, **choice.missing},
        "wheels": entries,
    }
    (out / join_wheels.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    (out / INSTALL).write_text(_INSTALL.format(version=version, python=target.python))
    shutil.copyfile(join_wheels.__file__, out / "join_wheels.py")
