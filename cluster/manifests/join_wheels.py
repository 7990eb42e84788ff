"""Compares the files of a folder of wheels with its manifest and puts split wheels together.

`manyfaces manifest wheels` copies this file beside the wheels, where `install.sh` runs it: it needs
nothing but Python's own library.
"""

import hashlib
import json
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MANIFEST = "wheels.json"
_CHUNK = 1 << 20


def main(folder: Path, joined: Path) -> int:
    """Write the wheels into `joined`, or what is wrong to stderr, a line for each; the exit
    code."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return _fail([f"{folder / MANIFEST} cannot be read: {error}; copy it again"])
    faults = other_machine(manifest) + not_there(manifest)
    if not faults:
        faults = join(folder, manifest["wheels"], joined)
    return _fail(faults) if faults else 0


def other_machine(manifest: dict[str, Any]) -> list[str]:
    """What of this machine the wheels are not for."""
    faults, machine, needed = [], platform.machine(), manifest["glibc"]
    if machine != manifest["machine"]:
        faults.append(f"the wheels are for {manifest['machine']}, this machine is {machine}")
    library, found = platform.libc_ver()
    numbers = [int(number) for number in found.split(".") if number.isdigit()]
    if library != "glibc" or numbers < [2, needed]:
        this = f"{library} {found}".strip() or "another C library"
        faults.append(f"the wheels need glibc 2.{needed} or newer, this machine has {this}")
    return faults


def not_there(manifest: dict[str, Any]) -> list[str]:
    """What was not gathered and is not installed here."""
    faults = []
    for name, why in manifest["not_gathered"].items():
        if not _has(name):
            faults.append(f"{name} is not installed here, and was not gathered: {why}")
    return faults


def _has(name: str) -> bool:
    """Whether there is a distribution of this name, or a module of it: builds of one's own may have
    other names."""
    try:
        version(name)
    except PackageNotFoundError:
        return find_spec(name.replace("-", "_")) is not None
    return True


def join(folder: Path, wheels: list[dict[str, Any]], joined: Path) -> list[str]:
    """Put each wheel into `joined`: one file as a link, several one behind the other. Returns what
    is wrong with the files."""
    there = {path.name: path for path in folder.rglob("*.whl*")}
    faults = []
    for wheel in wheels:
        found = [there.get(Path(file["path"]).name) for file in wheel["files"]]
        wrong = [_fault(path, file) for path, file in zip(found, wheel["files"], strict=True)]
        faults += list(filter(None, wrong))
        if any(wrong):
            continue
        paths = [path for path in found if path is not None]
        if len(paths) == 1:
            (joined / wheel["name"]).symlink_to(paths[0])
            continue
        with (joined / wheel["name"]).open("wb") as whole:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole, _CHUNK)
        if _sha256(joined / wheel["name"]) != wheel["sha256"]:
            faults.append(f"{wheel['name']}: its parts together are not the wheel")
    return faults


def _fault(path: Any, file: dict[str, Any]) -> str:
    if path is None:
        return f"{file['path']} is missing"
    if path.stat().st_size != file["bytes"] or _sha256(path) != file["sha256"]:
        return f"{path}: its bytes are not those of {MANIFEST} (SHA-256); copy it again"
    return ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_CHUNK), b""):
            digest.update(block)
    return digest.hexdigest()


def _fail(faults: list[str]) -> int:
    for fault in faults:
        sys.stderr.write(f"error: {fault}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))
