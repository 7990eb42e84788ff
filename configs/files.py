"""Files that are whole or not there, what their bytes are told by, and which names may name one."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath

_BLOCK_BYTES = 1 << 20


def file_sha256(path: Path, count: Callable[[int], None] = lambda num_bytes: None) -> str:
    """SHA-256 of the file's bytes, hexadecimal. `count` is told how many more bytes were read, as
    they are."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(buffer):
            digest.update(buffer[:num_bytes])
            count(num_bytes)
    return digest.hexdigest()


def relative_name(name: str) -> str:
    """The same name, once it is sure to name a file in the folder of what lists it or below: it is
    relative, in its shortest form and without `..`. Raises `ValueError` for any other.

    Every name that was read from a file goes through here before a file is opened by it.
    """
    path = PurePosixPath(name)
    strange = "\0" in name or "\\" in name or not path.name
    if strange or path.is_absolute() or ".." in path.parts or str(path) != name:
        raise ValueError(f"{name!r} is not the name of a file in this folder")
    return name


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name, flush to disk, rename: a reader sees the old file or the new one.
    Where that fails, as on a full disk, nothing is left behind."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
