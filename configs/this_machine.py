"""What this computer has, without torch: its GPUs and the memory that its processes may take."""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple, get_args

from manyfaces.configs.machines import Card

_ASK_S = 10.0
_BFLOAT16 = {"avx512f", "amx_bf16", "bf16"}
"""Flags of processors, as Linux tells them: oneDNN makes bfloat16 products of plain AVX-512 too."""


class Gpus(NamedTuple):
    """The GPUs of this computer, as the driver tells of them."""

    name: str
    card: Card | None
    """What it is called in the table of `machines.py`, if it is there."""
    memory_bytes: int
    """Memory of the smallest."""


def num_gpus() -> int:
    """GPUs that this computer shows its processes."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def gpus() -> Gpus | None:
    """The GPUs, or None where there is none or the driver does not answer."""
    if not num_gpus():
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=_ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpus(told.stdout)


def parse_gpus(told: str) -> Gpus | None:
    """The GPUs by what `nvidia-smi` tells of each: `NAME, MIB`."""
    rows = [line.rpartition(", ") for line in told.splitlines()]
    known = [(int(size), name) for name, _, size in rows if size.strip().isdecimal()]
    if not known:
        return None
    mib, name = min(known)
    return Gpus(name, _card(name, mib), mib << 20)


def _card(name: str, mib: int) -> Card | None:
    words = re.sub(r"\bRTX ", "RTX", name).upper()
    for card in get_args(Card):
        if re.search(rf"\b{re.escape(card.upper())}\b", words):
            return "a100-40gb" if card == "a100" and mib < 50_000 else card
    return None


def computes_bfloat16() -> bool:
    """Whether the processor has instructions with which torch's products of bfloat16 numbers are no
    slower than those of float32."""
    return has_bfloat16(Path("/proc/cpuinfo").read_text())


def has_bfloat16(told: str) -> bool:
    """The same, of the processor that /proc/cpuinfo tells of."""
    lines = (line.partition(":") for line in told.splitlines())
    lists = [rest.split() for key, _, rest in lines if key.strip() in ("flags", "Features")]
    return any(not _BFLOAT16.isdisjoint(flags) for flags in lists)


def memory_bytes() -> tuple[int, str]:
    """Memory that processes of this computer may take together, and what sets that limit."""
    group = control_group()
    if group is None:
        return _whole_memory(), "this machine"
    return group.limit_bytes, "the control group of this process"


def _whole_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class ControlGroup(NamedTuple):
    """A control group that limits the memory of this process."""

    limit_bytes: int
    folder: Path
    is_version_1: bool = False

    def used_bytes(self) -> int:
        """What its processes hold, without the copies of files that the kernel gives up where
        memory runs short. Raises `OSError`, `ValueError` or `KeyError` where it does not tell."""
        used, given_up = "memory.current", "inactive_file"
        if self.is_version_1:
            used, given_up = "memory.usage_in_bytes", "total_inactive_file"
        lines = (self.folder / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
        return int((self.folder / used).read_text()) - int(stat[given_up])


def control_group() -> ControlGroup | None:
    """The control group that leaves this process less memory than the machine has, if any does."""
    try:
        own = Path("/proc/self/cgroup").read_text()
    except OSError:
        return None
    group = limiting_group(own, Path("/sys/fs/cgroup"))
    return group if group is not None and group.limit_bytes < _whole_memory() else None


def limiting_group(own: str, root: Path) -> ControlGroup | None:
    """The one with the lowest limit of memory among the control groups that `own`, the text of
    /proc/self/cgroup, names and those above them; `root` is where they are mounted. None without a
    limit."""
    groups = []
    for line in own.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":  # version 2
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.strip("/")
        for folder in (group, *group.parents):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                text = "max"
            if text.isdecimal():
                groups.append(ControlGroup(int(text), folder, is_version_1=number != "0"))
            if folder == base:
                break
    return min(groups, key=lambda group: group.limit_bytes, default=None)
