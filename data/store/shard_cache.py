"""The shard cache: a folder of whole shards on a node's disk, bounded in bytes and shared by the
node's processes. It knows nothing of where they come from.

    SHA256.tar             whole; its bytes were compared with the manifest before it got this name
    .SHA256.BYTES.part     being fetched; BYTES is the room that it will take
    .SHA256.lock           held by the one process that fetches this shard
    .needs-ID              what one process needs soon, {SHA256: windows from now}; held as long as
    it lives
    .lock                  held for moments, while room is made

Locks are the kernel's (flock): they end with their process, however that ends, and what it left is
then swept away.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field, TypeAdapter, ValidationError

from manyfaces.configs.errors import UserError

POLL_S = 0.02
_PART = re.compile(r"\.([^.]+)\.(\d+)\.part")
_NEEDS = TypeAdapter(dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]])


class Stopped(Exception):
    """Raised in a wait whose owner was closed."""


class ShardCache:
    """At most `limit_bytes` of shards in `folder`, those being fetched included, whichever datasets
    they belong to.

    Waits last as long as another process gets on with its fetch, and `patience_s` more; then
    `UserError`. Setting `stopping` ends them with `Stopped`.
    """

    def __init__(
        self, folder: Path, limit_bytes: int, patience_s: float, stopping: threading.Event
    ) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.patience_s, self.stopping = patience_s, stopping
        self._needs: IO[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the shard with these bytes lies while it is cached."""
        return shard_path(self.folder, sha256)

    def put(
        self,
        sha256: str,
        size: int,
        fetch: Callable[[Path, float], None],
        nearer_than: float | None,
    ) -> None:
        """Have the shard here: `fetch` writes it to the path it is given, whole and verified, or
        raises. It is told for how many seconds another process has tried in vain: all who wait for
        a shard have one patience, not one after the other.

        With `nearer_than`, only shards that are needed later than in so many windows are evicted
        for it, and it is left out where those do not suffice or where another process fetches it.
        With None any shard may be evicted, and both are waited for.
        """
        part = self.folder / f".{sha256}.{size}.part"
        wait = self._patience(part)
        with locked(self.folder / f".{sha256}.lock", wait if nearer_than is None else None) as mine:
            if not mine or self.path(sha256).exists():
                return
            waited_s, full = wait.waited_s, self._patience()
            while not self._reserve(part, size, -1 if nearer_than is None else nearer_than):
                if nearer_than is not None:
                    return
                full()
            try:
                fetch(part, waited_s)
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                with self._alone():
                    part.replace(self.path(sha256))
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def tell_needs(self, needs: dict[str, int]) -> None:
        """What this process needs, for all who make room; of what nobody needs, the least recently
        needed goes first."""
        with self._alone():
            if self._needs is None:
                self._needs = (self.folder / f".needs-{uuid.uuid4().hex[:8]}").open("w")
                fcntl.flock(self._needs, fcntl.LOCK_EX)
            self._needs.seek(0)
            self._needs.truncate()
            json.dump(needs, self._needs)
            self._needs.flush()
        for sha256 in needs:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path(sha256))

    def close(self) -> None:
        """Take back what this process has said it needs."""
        if self._needs is not None:
            Path(self._needs.name).unlink(missing_ok=True)
            self._needs.close()
            self._needs = None

    def _reserve(self, part: Path, size: int, nearer_than: float) -> bool:
        """Make room and take it; False, and nothing is evicted, where there is none to be had."""
        with self._alone():
            part.unlink(missing_ok=True)
            whole, taken, needs = self._look()
            over = taken + sum(b for _, b in whole.values()) + size - self.limit_bytes
            over = max(over, size - shutil.disk_usage(self.folder).free)
            distance = {path: needs.get(path.stem, math.inf) for path in whole}
            evictable = [path for path in whole if distance[path] > nearer_than]
            evicted = []
            for path in sorted(evictable, key=lambda path: (-distance[path], whole[path][0])):
                if over <= 0:
                    break
                evicted.append(path)
                over -= whole[path][1]
            if over > 0:
                return False
            for path in evicted:  # a process that has it open keeps its bytes
                path.unlink(missing_ok=True)
            part.touch()
            return True

    def _look(self) -> tuple[dict[Path, tuple[float, int]], int, dict[str, float]]:
        """Whole shards with (time of last need, bytes), bytes of those being fetched, and what the
        node's processes need."""
        whole: dict[Path, tuple[float, int]] = {}
        taken, needs = 0, dict[str, float]()
        for path in self.folder.iterdir():
            if path.suffix == ".tar":
                facts = path.stat()
                whole[path] = facts.st_mtime, facts.st_size
            elif begun := _PART.fullmatch(path.name):
                with locked(self.folder / f".{begun[1]}.lock") as left_behind:
                    if left_behind:
                        path.unlink()
                    else:
                        taken += int(begun[2])
            elif path.name.startswith(".needs-"):
                with locked(path) as left_behind:
                    if left_behind:
                        path.unlink()
                    else:
                        for sha256, distance in _needs_in(path).items():
                            needs[sha256] = min(distance, needs.get(sha256, math.inf))
        return whole, taken, needs

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with locked(self.folder / ".lock", self._patience()):
            yield

    def _patience(self, growing: Path | None = None) -> "Patience":
        return Patience(self.folder, self.patience_s, growing, self.stopping)


def _needs_in(path: Path) -> dict[str, float]:
    """What the file of another process says that it needs; nothing where that does not fit, so that
    no process is held up by it, nor where the process ended just now."""
    try:
        return _NEEDS.validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}


def shard_path(folder: Path, sha256: str) -> Path:
    """Where a shard cache in the folder keeps the shard with these bytes."""
    return folder / f"{sha256}.tar"


@contextlib.contextmanager
def locked(path: Path, wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock file and give True, after calling `wait` for as long as another process has it;
    without `wait`, give False where one has. Raises `UserError` where the file system has no
    locks."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    yield False
                    return
                wait()
            except OSError as error:
                raise UserError(
                    f"{path.parent}: its file system has no locks ({error.strerror}), by which the "
                    "processes of a node share a cache; set data.cache_dir to a local disk"
                ) from error
            else:
                yield True
                return


class Patience:
    """Waits a moment at each call; gives up with `UserError` after the patience, counted from when
    bytes last came to `growing`."""

    def __init__(
        self,
        folder: Path,
        patience_s: float,
        growing: Path | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        self.folder, self.patience_s, self.growing = folder, patience_s, growing
        self.stopping = stopping or threading.Event()
        self._size, self._since = 0, time.monotonic()

    @property
    def waited_s(self) -> float:
        """Seconds since it was made, or since bytes last came."""
        return time.monotonic() - self._since

    def __call__(self) -> None:
        if self.stopping.wait(POLL_S):
            raise Stopped
        size = 0
        if self.growing is not None:
            with contextlib.suppress(FileNotFoundError):
                size = self.growing.stat().st_size
        # A file that is begun anew, or given up, is not yet progress.
        if size not in (0, self._size):
            self._since = time.monotonic()
        self._size = size
        # The process that fetches gives up first, and says why.
        if self.waited_s > self.patience_s + min(30, self.patience_s):
            free = shutil.disk_usage(self.folder).free / 1e9
            raise UserError(
                f"{self.folder}: full, or held by another process, for {self.patience_s:.0f} s "
                f"({free:.1f} GB free on its disk); make "
                "room, end that process, raise data.cache_gb or set another data.cache_dir; the "
                "same command then resumes"
            )
