"""A folder at a URL (`s3://`, `gs://`, `https://`, whatever fsspec knows): sizes, reads and whole
files, with patience. The one file that knows fsspec and tenacity.

Credentials and endpoints are the drivers' own: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL and
their like, Google's defaults.
"""

import contextlib
import hashlib
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import tenacity
from fsspec.callbacks import Callback

from manyfaces.configs.errors import UserError
from manyfaces.configs.redact import is_redacted, redact
from manyfaces.data.store.faults import DATASET, Advice, WrongBytesError, remedy, status, words
from manyfaces.data.store.shard_cache import Stopped

T = TypeVar("T")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
CONNECT_S, READ_S = 5.0, 15.0
SLOWEST_BYTES_PER_S, PACE_S = 20_000, 20.0  # a body slower than this over so long counts as stalled
PART_BYTES = 16 << 20  # of one upload; S3 takes 10,000 parts of a file
LASTING = 3  # the same wrong bytes so often are what the store holds


class Remote:
    """Reads and writes below `url`. What may pass (5xx, timeouts, resets, short or wrong bodies) is
    tried again with growing pauses, at most 5 s, for `patience_s` seconds in all; what waiting does
    not mend (missing, forbidden) is told at once.

    `tell` gets a line about trouble that goes on; setting `stopping` ends every wait with
    `Stopped`. All methods raise `UserError`: which file, what was tried, the last error, what to
    do, which `advice` has for what is kept there.
    """

    def __init__(
        self,
        url: str,
        patience_s: float,
        tell: Callable[[str], None] = lambda line: None,
        stopping: threading.Event | None = None,
        advice: Advice = DATASET,
    ) -> None:
        if is_redacted(url):
            raise UserError(
                f"{url}: what is kept of a run does not tell credentials; give the URL with them, "
                "or without them and with the store's own in the environment"
            )
        self.url, self.patience_s = url.rstrip("/"), patience_s
        self.tell: Callable[[str], None] = lambda line: tell(redact(line))
        self.stopping, self.advice = stopping or threading.Event(), advice
        self._fs, self._root = _driver(self.url, patience_s, advice.subject)
        self.read_only = self._fs.protocol == ("http", "https")
        self._in_parts = EXTRAS.get(self.url.split("://", 1)[0]) in ("s3", "gcs")

    def read(self, name: str) -> bytes:
        """A small file's bytes."""
        body: bytes = self._patiently(name, lambda: self._fs.cat_file(self._at(name)))
        return body

    def read_if_there(self, name: str) -> bytes | None:
        """A small file's bytes; None where the store says that it does not exist."""
        try:
            return self.read(name)
        except UserError as error:
            if status(error) == 404:
                return None
            raise

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        """Number of bytes of those files that are there; None where the store does not tell it.
        Folders are listed; over HTTP each file is asked for."""
        if self.read_only:
            with ThreadPoolExecutor(16) as pool:
                return {
                    name: size
                    for name, size in zip(names, pool.map(self._size, names), strict=True)
                    if size != -1
                }
        found: dict[str, int | None] = {}
        for folder in sorted({self._at(name).rpartition("/")[0] for name in names}):
            rows = self._patiently("", lambda folder=folder: self._fs.ls(folder, detail=True))  # type: ignore[misc]
            found |= {row["name"]: row["size"] for row in rows}
        return {name: found[at] for name in names if (at := self._at(name)) in found}

    def listing(self, suffix: str) -> dict[str, int | None]:
        """Names and bytes of the files right below the URL that end so, sorted."""
        rows = self._patiently("", lambda: self._fs.ls(self._root, detail=True))
        return {
            name: row["size"]
            for row in sorted(rows, key=lambda r: r["name"])
            if (name := row["name"].rpartition("/")[2]).endswith(suffix)
        }

    def tree(self, folder: str) -> dict[str, int | None]:
        """Names below the URL and bytes of all files in the folder ("" for all there) and below it,
        sorted; none where there is no such folder."""
        rows = self._patiently(folder, lambda: self._fs.find(self._at(folder), detail=True))
        sizes = {at.removeprefix(f"{self._root}/"): rows[at]["size"] for at in sorted(rows)}
        below = f"{folder}/" if folder else ""
        return {name: size for name, size in sizes.items() if name.startswith(below)}

    def fetch(
        self,
        name: str,
        to: Path,
        size: int | None,
        sha256: str | None,
        waited_s: float = 0.0,
        count: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """Fetch the whole file to the path `to`, overwriting it, until it has this size and
        SHA-256, as far as they are known. `waited_s` seconds of the patience are spent already; the
        fetch is tried once at least. `count` is told of bytes as they come."""
        seen: Counter[str] = Counter()

        def once() -> None:
            self._fs.get_file(
                self._at(name),
                str(to),
                callback=_Pace(min(PACE_S, self.patience_s / 3), self.stopping, count),
            )
            with to.open("rb") as file:
                digest, got = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            if digest != sha256 if sha256 is not None else size is not None and got != size:
                seen[digest] += 1
                what = (
                    "other bytes"
                    if got == size or size is None
                    else f"{got:,} bytes, not the {size:,}"
                )
                raise WrongBytesError(f"{what} that the manifest says", seen[digest] >= LASTING)

        self._patiently(name, once, local=to, waited_s=waited_s)

    def upload(
        self, name: str, file: Path, count: Callable[[int], None] = lambda num_bytes: None
    ) -> None:
        """Put a local file there, which object stores show whole or not at all; in parts where it
        is large, of which one is held in memory. `count` is told of bytes as they go. Raises
        `UserError` also for a local file that cannot be read, which is not tried again."""

        def once() -> None:
            options = {"chunksize": PART_BYTES} if self._in_parts else {}
            callback = _Pace(math.inf, self.stopping, count)
            self._fs.put_file(str(file), self._at(name), callback=callback, **options)

        try:
            file.open("rb").close()
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read to be sent to {self.url}/{name} "
                f"({error.strerror or error}); see to the disk, and that nothing else removes it"
            ) from error
        self._patiently(name, once)

    def write(self, name: str, body: bytes) -> None:
        """Put a small file there; object stores show it whole or not at all."""
        self._patiently(name, lambda: self._fs.pipe_file(self._at(name), body))

    def create(self, name: str, body: bytes) -> bool:
        """Put a small file there unless there is one; returns whether it was put. Two processes at
        once cannot both put it, as far as the store knows to tell."""

        def once() -> bool:
            try:
                with self._fs.open(self._at(name), "xb") as file:
                    file.write(body)
            except FileExistsError:
                return False
            return True

        return self._patiently(name, once)

    def age_s(self, name: str) -> float:
        """Seconds since the file was put there, by the store's own clock; 0 where it is not there
        any more."""
        now = f"{name}.now-{uuid.uuid4().hex[:8]}"
        self.write(now, b"now")
        try:
            times = [
                self._patiently(each, lambda each=each: self._fs.modified(self._at(each)))  # type: ignore[misc]
                for each in (now, name)
            ]
        except UserError as error:
            if status(error) != 404:
                raise
            return 0.0
        finally:
            self.remove(now)
        return float((times[0] - times[1]).total_seconds())

    def remove(self, name: str) -> None:
        """Remove a file, which need not be there."""

        def once() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name))

        self._patiently(name, once)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _size(self, name: str) -> int | None:
        """Number of bytes of the file, None where the store does not tell it, -1 where there is no
        such file."""
        try:
            size: int | None = self._patiently(name, lambda: self._fs.info(self._at(name))["size"])
        except UserError as error:
            if status(error) != 404:
                raise
            return -1
        return size

    def _patiently(
        self, name: str, call: Callable[[], T], local: Path | None = None, waited_s: float = 0.0
    ) -> T:
        where, began = f"{self.url}/{name}".rstrip("/"), time.monotonic() - waited_s

        def told(state: tenacity.RetryCallState) -> None:
            tries = state.attempt_number
            # A first failure comes and goes; later ones are told ever more rarely.
            if tries > 1 and tries & (tries - 1) == 0:
                self.tell(
                    f"{where}: {_text(state.outcome)}; tried {tries} times in "
                    f"{time.monotonic() - began:.0f} s, trying on"
                )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: remedy(error, local) is None),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=5, jitter=0.2),
            stop=lambda _: self.stopping.is_set() or time.monotonic() - began >= self.patience_s,
            sleep=tenacity.sleep_using_event(self.stopping),
            before_sleep=told,
        )
        try:
            return retrying(call)
        except Stopped:
            raise
        except tenacity.RetryError as gave_up:
            if self.stopping.is_set():
                raise Stopped from gave_up
            last = gave_up.last_attempt
            tried = (
                f"tried {last.attempt_number} times in {time.monotonic() - began:.0f} s "
                f"({self.advice.patience})"
            )
            todo = f"check the store and the network{self.advice.then}"
            raise UserError(f"{where}: {tried}, last: {_text(last)}; {todo}") from last.exception()
        except Exception as error:
            todo = f"{remedy(error, local, self.advice)}{self.advice.then}"
            raise UserError(f"{where}: {words(error)}; {todo}") from error


class _Pace(Callback):  # type: ignore[misc]
    """Raises from inside a transfer that stalls, or whose reader was closed; counts its bytes."""

    def __init__(
        self, within_s: float, stopping: threading.Event, count: Callable[[int], None]
    ) -> None:
        super().__init__()
        self.within_s, self.stopping, self.count = within_s, stopping, count
        self.since, self.bytes = time.monotonic(), 0

    def relative_update(self, inc: int = 1) -> None:
        if self.stopping.is_set():
            raise Stopped
        self.count(inc)
        self.bytes += inc
        if (elapsed := time.monotonic() - self.since) > self.within_s:
            if self.bytes < SLOWEST_BYTES_PER_S * elapsed:
                raise TimeoutError(f"{self.bytes / elapsed:,.0f} bytes/s for {elapsed:.0f} s")
            self.since, self.bytes = time.monotonic(), 0


def _driver(url: str, patience_s: float, subject: str) -> tuple[Any, str]:
    """fsspec's file system for the URL, and the URL as it wants it."""
    scheme = url.split("://", 1)[0]
    connect_s, read_s = (
        min(CONNECT_S, max(patience_s / 3, 0.5)),
        min(READ_S, max(patience_s / 3, 0.5)),
    )
    options: dict[str, Any] = {"use_listings_cache": False}
    try:
        if EXTRAS.get(scheme) == "s3":
            retries = {"total_max_attempts": 1}
            config = {"retries": retries, "connect_timeout": connect_s, "read_timeout": read_s}
            fs, root = fsspec.core.url_to_fs(
                url, config_kwargs=config, max_concurrency=1, **options
            )
            fs.retries = 1  # one layer of retries, ours: layers multiply, and hide what was tried
        elif EXTRAS.get(scheme) == "http":
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)
            fs, root = fsspec.core.url_to_fs(url, client_kwargs={"timeout": timeout}, **options)
        elif scheme in ("file", "local"):
            fs, root = fsspec.core.url_to_fs(url, auto_mkdir=True, **options)
        else:
            fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        how = f"pip install manyfaces[{EXTRAS[scheme]}]" if scheme in EXTRAS else str(error)
        raise UserError(
            f"{subject} {url}: the driver for {scheme}:// is not installed: {how}"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{subject} {url}: {error}; give a local folder, or a URL like s3://BUCKET/PREFIX"
        ) from error
    return fs, str(root).rstrip("/")


def _text(outcome: tenacity.Future | None) -> str:
    error = outcome.exception() if outcome is not None else None
    return words(error) if error is not None else "no answer"
