"""The wheel of this package itself, built from its sources or put together again from what is
installed."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from manyfaces.configs.errors import UserError

_OF_THE_INSTALLATION = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"}
"""Files that an installer adds to `*.dist-info` (PEP 376, PEP 610), and the one that is written
anew."""


def own_wheel(folder: Path) -> Path:
    """Write the wheel into `folder` and return its path. Raises `UserError` where it cannot be
    built."""
    root = sources()
    return _repacked(folder) if root is None else _built(root, folder)


def sources() -> Path | None:
    """The root of the sources that run; None where they were installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else None


def _built(root: Path, folder: Path) -> Path:
    """Built from a copy of the sources, because a build leaves files in the folder that it is
    done in."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    rooms = project["tool"]["setuptools"]["package-dir"].values()
    files = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    with tempfile.TemporaryDirectory(prefix="manyfaces-sources-") as copy:
        for room in rooms:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / room, Path(copy) / room, ignore=ignored)
        for name in files:
            shutil.copy(root / name, copy)
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
        command = [sys.executable, "-m", "pip", "wheel", *options, str(folder), copy]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        last = (built.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(f"{root}: the wheel cannot be built: {last}")
    [wheel] = folder.glob("manyfaces-*.whl")
    return wheel


def _repacked(folder: Path) -> Path:
    """Put together of the installed files, with a RECORD of its own."""
    installed = distribution("manyfaces")
    wheel = folder / f"manyfaces-{installed.version}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(installed.files or ()):
            is_of_the_installation = (
                ".." in file.parts  # the command `manyfaces`, made anew by each installation
                or "__pycache__" in file.parts
                or (".dist-info" in file.parts[0] and file.name in _OF_THE_INSTALLATION)
            )
            if is_of_the_installation:
                continue
            content = Path(str(installed.locate_file(file))).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().strip("=")
            archive.writestr(file.as_posix(), content)
            record.append(f"{file.as_posix()},sha256={digest},{len(content)}\n")
        name = f"manyfaces-{installed.version}.dist-info/RECORD"
        archive.writestr(name, "".join([*record, f"{name},,\n"]))
    return wheel
