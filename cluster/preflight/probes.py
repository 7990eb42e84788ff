"""What one node is asked before a run: small functions that answer about the machine they run on.
They know nothing of Ray; what a person has to mend is a `fault` in the answer, never an error."""

import fcntl
import math
import os
import pkgutil
import platform
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from manyfaces.cluster.versions import PACKAGES
from manyfaces.configs.redact import redact

WRITE_BYTES, WRITE_S, BLOCK_BYTES = 64 << 20, 5.0, 4 << 20
"""What is written to measure a folder: so many bytes, or for so long where that is slower."""
SEE_S = 5.0
"""How long a folder may take to show what another node has written: NFS keeps what it knows of a
folder for seconds."""
_SIOCGIFADDR = 0x8915
_NVIDIA_SMI_S = 20


class Told(BaseModel):
    """Facts that travel between nodes and become JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(Told):
    """A GPU as the driver knows it."""

    name: str
    memory_mib: int


class Interface(Told):
    """A network interface."""

    name: str
    mtu: int | None
    speed_mbit_s: int | None
    """What the driver says; None where it does not, as most virtual ones."""


class System(Told):
    """A node's machine and software."""

    gpus: tuple[Gpu, ...]
    driver: str | None
    """Version of NVIDIA's driver."""
    torch_gpus: int
    """How many GPUs torch sees."""
    interface: Interface | None
    """Which has the address by which the other nodes know this one."""
    shm_bytes: int
    """Free bytes of /dev/shm."""
    versions: dict[str, str]


class Folder(Told):
    """A folder that a run writes to."""

    key: str
    """Where the configuration names it: `run.dir`."""
    path: str
    is_shared: bool
    """Whether all nodes have to see the same folder."""
    needs_bytes: int | None = None
    """What the run will write there, where that is known."""
    held: str | None = None
    """The folder whose files are part of `needs_bytes` already; None for all of a folder of one
    node alone."""


class FolderAnswer(Told):
    """How a folder is on one node."""

    key: str
    path: str
    free_bytes: int | None = None
    held_bytes: int = 0
    """What a run of this name has written there before; of other runs in a shared folder nothing
    is counted, as there may be more than is quick to count."""
    write_bytes_s: float | None = None
    seen_by: int | None = None
    """How many nodes see what this one has written there; None where nobody has looked."""
    fault: str = ""
    """Why nothing can be written there."""


class Answer(Told):
    """What a probe that was handed in has found."""

    facts: dict[str, Any] = Field(default={})
    fault: str = ""


def system(address: str) -> System:
    """This node, which the others know by this IP address."""
    import torch

    gpus, driver = nvidia_gpus()
    return System(
        gpus=gpus,
        driver=driver,
        torch_gpus=torch.cuda.device_count(),
        interface=interface(address),
        shm_bytes=shutil.disk_usage("/dev/shm").free,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that ranks have to have alike."""
    found = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def nvidia_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs and the version of the driver, as nvidia-smi tells them; nothing without it."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    ]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return (), None
    return parse_gpus(said.stdout)


def parse_gpus(text: str) -> tuple[tuple[Gpu, ...], str | None]:
    """GPUs and driver in nvidia-smi's lines `NAME, MIB, DRIVER`."""
    gpus, driver = [], None
    for line in text.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3:
            memory_mib = int(parts[1]) if parts[1].isdecimal() else 0  # "[N/A]" for shared memory
            gpus.append(Gpu(name=parts[0], memory_mib=memory_mib))
            driver = parts[2]
    return tuple(gpus), driver


def interface(address: str) -> Interface | None:
    """The interface that has this IPv4 address, None where none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                told = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(told[20:24]) == address:
                facts = Path("/sys/class/net", name)
                speed = _number(facts / "speed")
                return Interface(
                    name=name,
                    mtu=_number(facts / "mtu"),
                    speed_mbit_s=speed if speed is not None and speed > 0 else None,
                )
    return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def marker(token: str, node: str) -> str:
    """The name of the file that a node writes to see whether it can, and whether others see it."""
    return f".manyfaces-preflight-{token}-{node}"


class Writing:
    """Files that this node writes into folders to try them, and removes again with the folders that
    were not there before."""

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._made: list[Path] = []

    def write(self, folder: Folder, name: str) -> FolderAnswer:
        """Write a file of this name and measure how fast that is; it stays until `remove_files`."""
        answer = FolderAnswer(key=folder.key, path=redact(folder.path))
        file = _expanded(folder.path) / name
        try:
            self._make(file.parent)
            self._files.append(file)
            write_bytes_s = _write(file)
            free_bytes = shutil.disk_usage(file.parent).free
        except OSError as error:
            return answer.model_copy(update={"fault": error.strerror or str(error)})
        facts = {
            "write_bytes_s": write_bytes_s,
            "free_bytes": free_bytes,
            "held_bytes": _held_bytes(folder),
        }
        return answer.model_copy(update=facts)

    def _make(self, folder: Path) -> None:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        self._made += missing
        folder.mkdir(parents=True, exist_ok=True)

    def remove_files(self) -> None:
        """Remove the files; call it on all nodes before `remove_folders` on any, as a folder may be
        the same on all."""
        for file in self._files:
            _quietly(file.unlink)
        self._files.clear()

    def remove_folders(self) -> None:
        """Remove the folders that were made, where nothing else has come to be in them."""
        for folder in sorted(set(self._made), key=lambda made: len(made.parts), reverse=True):
            _quietly(folder.rmdir)
        self._made.clear()


def seen(folder: Folder, names: Sequence[str], wait_s: float = SEE_S) -> list[str]:
    """Those of the files that this node sees in the folder, within `wait_s` seconds."""
    path, deadline = _expanded(folder.path), time.monotonic() + wait_s
    while True:
        found = [name for name in names if _stat(path / name) is not None]
        if len(found) == len(names) or time.monotonic() > deadline:
            return found
        time.sleep(min(0.5, wait_s))


def asked(function: str, payload: Mapping[str, Any]) -> Answer:
    """What the function `MODULE:FUNCTION` returns for the payload; what it raises is the fault."""
    try:
        return Answer(facts=pkgutil.resolve_name(function)(payload))
    except Exception as error:  # whatever it is, the other probes go on
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        return Answer(fault=redact(lines[0].strip()))


def _write(file: Path) -> float:
    """Bytes a second, flushed to the disk."""
    block, written, began = os.urandom(BLOCK_BYTES), 0, time.perf_counter()
    with file.open("wb") as out:
        while written < WRITE_BYTES and time.perf_counter() - began < WRITE_S:
            out.write(block)
            out.flush()
            os.fsync(out.fileno())
            written += len(block)
    return written / max(time.perf_counter() - began, math.ulp(1.0))


def _held_bytes(folder: Folder) -> int:
    counted = folder.held or (None if folder.is_shared else folder.path)
    total = 0
    for path, _, names in os.walk(_expanded(counted)) if counted else ():
        for name in names:
            if (facts := _stat(Path(path, name))) is not None:
                total += facts.st_size
    return total


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:  # it was removed meanwhile
        return None


def _expanded(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _quietly(remove: Callable[[], object]) -> None:
    try:
        remove()
    except OSError:  # another node was first, or it is not empty
        return
