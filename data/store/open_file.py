"""A file on this node that stays open and is read by `pread`.

It is not mapped: where a mapped file was cut short or its disk fails, the kernel ends the process
by SIGBUS without a word. A read tells it, and costs no more.
"""

import os
from pathlib import Path


class OpenFile:
    """A file, open for reading until this object is forgotten. Its bytes stay readable when the
    file is removed meanwhile. Raises `OSError`."""

    def __init__(self, path: str | Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # it is not there where `os.open` has raised
            os.close(self.descriptor)

    @property
    def size(self) -> int:
        """The number of bytes that the file has now."""
        return os.fstat(self.descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset`, fewer where the file ends before. Raises `OSError`."""
        body = os.pread(self.descriptor, size, offset)
        while len(body) < size:  # a network file system may give a part of what is there
            more = os.pread(self.descriptor, size - len(body), offset + len(body))
            if not more:
                break
            body += more
        return body
