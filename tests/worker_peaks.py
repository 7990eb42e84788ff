"""The memory of a run's real processes at its peak, for comparing it with what was planned."""

import contextlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from manyfaces.data.dataset.index_shards import index_folder
from manyfaces.train.heartbeat import read_heartbeats

POLL_S = 0.02
TIMEOUT_S = 420.0
_TAKEN = ("RssAnon:", "RssShmem:")


@dataclass
class Peaks:
    """Most bytes that were seen, anonymous and shared ones: pages of files are the page cache's."""

    ranks: dict[int, int] = field(default_factory=dict)
    """Of each worker."""
    beside: int = 0
    """Of all other processes of the run together."""
    plan: dict[str, int] = field(default_factory=dict)
    """What the run had planned (`plan.json`)."""

    @property
    def worker(self) -> int:
        """Of the fullest worker."""
        return max(self.ranks.values())


def peaks_of(command: list[str], run: Path) -> Peaks:
    """Run `python COMMAND`, which trains in the folder `run`, to its end, and look at its processes
    meanwhile. Raises `RuntimeError` where it fails or takes too long; no process outlives the
    call."""
    found, began = Peaks(), time.monotonic()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen([sys.executable, *command], stdout=told, stderr=told)
        tree: list[psutil.Process] = []
        looked = 0.0
        try:
            while process.poll() is None and time.monotonic() - began < TIMEOUT_S:
                if time.monotonic() - looked > 0.5:
                    tree, looked = _tree(process.pid), time.monotonic()
                _look(found, [each.pid for each in tree], run)
                time.sleep(POLL_S)
        finally:
            for each in {*tree, *_tree(process.pid)}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()
        if process.returncode != 0 or not found.ranks:
            told.seek(0)
            raise RuntimeError(f"{command}: {process.returncode}\n{told.read().decode()[-3000:]}")
    found.plan = json.loads((run / "plan.json").read_text())
    return found


def _tree(pid: int) -> list[psutil.Process]:
    """The process and all below it; none where it is gone."""
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _look(found: Peaks, pids: list[int], run: Path) -> None:
    ranks = {beat.pid: beat.rank for beat in read_heartbeats(run).values()}
    if not ranks:  # a worker that has not said so yet is not told from what is beside it
        return
    beside = 0
    for pid in pids:
        taken = taken_bytes(pid)
        if pid in ranks:
            rank = ranks[pid]
            found.ranks[rank] = max(found.ranks.get(rank, 0), taken)
        else:
            beside += taken
    found.beside = max(found.beside, beside)


def taken_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process; 0 of one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_TAKEN))


def made_identities(folder: Path, source: Path, identities: int, per_shard: int = 10_000) -> Path:
    """A dataset of so many identities in `folder`, an image each, which are those of the first
    shard of `source` over and over: for heads, which do not look at images. Left as it is if it
    stands."""
    if (folder / "manyfaces.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(sorted(source.glob("*.tar"))[0]) as shard:
        members = [each for each in shard.getmembers() if each.name.endswith(".jpg")]
        images = [shard.extractfile(each).read() for each in members]  # type: ignore[union-attr]
    for first in range(0, identities, per_shard):
        with tarfile.open(folder / f"{first // per_shard:05}.tar", "w") as shard:
            for number in range(first, min(first + per_shard, identities)):
                for ending, body in (
                    ("jpg", images[number % len(images)]),
                    ("cls", str(number).encode()),
                ):
                    member = tarfile.TarInfo(f"{number:09}.{ending}")
                    member.size = len(body)
                    shard.addfile(member, io.BytesIO(body))
    index_folder(folder)
    return folder
