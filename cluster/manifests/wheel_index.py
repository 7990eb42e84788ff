"""Wheels for another machine, from the package index that this machine's pip knows."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name, parse_wheel_filename

from manyfaces.cluster.manifests.target import Target
from manyfaces.configs.errors import UserError

_NO_MATCH = re.compile(r"No matching distribution found for (\S+)")
_NONE_AT_ALL = "(from versions: none)"
_NO_ANSWER = re.compile(
    r"Could not fetch URL (\S+): (connection error: .*|timed out.*|There was a problem .*|5\d\d .*)"
    r" - skipping"
)
_BUILD_LIMIT_S = 600
_PURE = "py3-none-any"
# DeepSpeed would compile its operators for this machine; without them it does so at first use.
_BUILD_VARIABLES = {"DS_BUILD_OPS": "0"}


class Fetched(NamedTuple):
    """What came of a list of requirements, by normalised name."""

    wheels: Mapping[str, Path]
    built: frozenset[str]
    """Those of which there was a source distribution only, built here."""
    missing: Mapping[str, str]
    """Those that cannot be had, and why."""


class WheelIndex:
    """Fetches wheels for `target` into `folder`, which stands outside of any source tree: pip
    would take a package of that name in the folder that it runs in for the one that is asked."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder

    def fetch(self, requirements: Mapping[str, str]) -> Fetched:
        """Fetch one wheel for each requirement (`NAME==VERSION`, or another specifier), by its
        normalised name, without what it depends on.

        Raises `UserError` where the index does not answer.
        """
        wanted, absent = dict(requirements), []
        while wanted and (name := self._download(wanted)) is not None:
            absent.append(name)
            del wanted[name]
        missing = {}
        for name in absent:
            if reason := self._build(name, requirements[name]):
                missing[name] = reason
        found = {parse_wheel_filename(path.name)[0]: path for path in self.folder.glob("*.whl")}
        wheels = {name: found[canonicalize_name(name)] for name in requirements.keys() - missing}
        return Fetched(wheels, frozenset(wheels.keys() & set(absent)), missing)

    def _download(self, requirements: Mapping[str, str]) -> str | None:
        """Download all of them; or none, and return the name of one of which there is no wheel."""
        options = ["--only-binary=:all:", "--dest", str(self.folder), *self.target.pip_options()]
        ended = self._pip("download", *options, *requirements.values())
        if ended.returncode == 0:
            return None
        found = _NO_MATCH.search(ended.stderr)
        name = found and canonicalize_name(re.split(r"[^\w.-]", found[1])[0])
        if name is None or name not in requirements:
            raise UserError(f"pip download: {_last_error(ended.stderr)}")
        if _NONE_AT_ALL in ended.stderr:
            self._refuse_no_answer(options, requirements[name])
        return name

    def _refuse_no_answer(self, options: Sequence[str], requirement: str) -> None:
        """Raise `UserError` where the index does not answer: pip says of it what it says of a
        package that does not exist, and the rest only when it is asked to tell much."""
        ended = self._pip("download", "-vvv", *options, requirement)
        if found := _NO_ANSWER.search(ended.stdout + ended.stderr):
            raise UserError(f"pip download: {found[1]}: {found[2]}")

    def _build(self, name: str, requirement: str) -> str:
        """Build the wheel of a source distribution, if it is one for every machine. Returns the
        reason why it cannot be had, or nothing.

        Where there is a wheel for this machine's Python, it is not for every machine, and hours of
        compilation are spared.
        """
        with tempfile.TemporaryDirectory(prefix="manyfaces-build-") as built:
            own = self._pip("download", "--only-binary=:all:", "--dest", built, requirement)
            if own.returncode == 0:
                return "the index has wheels of it for other versions of Python or other machines"
        with tempfile.TemporaryDirectory(prefix="manyfaces-build-") as built:
            options = ["--no-binary", name, "--wheel-dir", built, requirement]
            try:
                ended = self._pip("wheel", *options, limit_s=_BUILD_LIMIT_S)
            except subprocess.TimeoutExpired:
                return f"its source distribution did not build here within {_BUILD_LIMIT_S} s"
            if ended.returncode and _NO_MATCH.search(ended.stderr):
                return "the index does not have it for this Python"
            if ended.returncode:
                return f"its source distribution does not build: {_last_error(ended.stderr)}"
            [wheel] = Path(built).glob("*.whl")
            if not wheel.stem.endswith(_PURE):
                return "its source distribution compiles code for the machine that it is built on"
            shutil.move(wheel, self.folder)
        return ""

    def _pip(
        self, verb: str, *words: str, limit_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        options = ["--no-deps", "--quiet", "--no-input", "--progress-bar", "off"]
        return subprocess.run(
            [sys.executable, "-m", "pip", verb, *options, *words],
            cwd=self.folder,
            env={**os.environ, **_BUILD_VARIABLES},
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )


def _last_error(output: str) -> str:
    lines: Sequence[str] = output.strip().splitlines() or ["it said nothing"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines)[-1].strip()
