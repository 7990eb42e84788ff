"""Names of class ids: `identities.txt`, line = name of the class id. Ten million of them stay
bytes, never as many Python objects."""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.dataset.part import Part
from manyfaces.data.store.remote import Remote

_COMPARED = 10_000
"""Names that are compared letter by letter with one that was not found."""


def open_names(part: Part) -> IO[bytes] | None:
    """The `identities.txt` of the part, opened; None where there is no such file."""
    if part.remote is not None and part.remote.with_index:
        body = Remote(part.remote.url, part.remote.patience_s).read_if_there(IDENTITIES)
        return None if body is None else io.BytesIO(body)
    file = part.path / IDENTITIES
    return file.open("rb") if file.exists() else None


def identity_names(part: Part) -> IO[str]:
    """The lines of the part's `identities.txt`; no line where there is no such file."""
    return io.TextIOWrapper(open_names(part) or io.BytesIO(), "utf-8", errors="replace")


def name_lines(dataset: Dataset) -> Iterator[bytes]:
    """Yields the name of each class and a line feed, in the order of the ids; nothing at all for a
    dataset without `identities.txt`.

    In a mixture a name is `PART/name`, after the part's folder (after as many of its last folders
    as tell the parts apart), and the identities of a part without the file go by number. Raises
    `UserError` for a file with other than one name an identity.
    """
    labels = short_names([Path(part.where) for part in dataset.parts])
    with contextlib.ExitStack() as opened:
        files = [open_names(part) for part in dataset.parts]
        if not any(files):
            return
        for there in filter(None, files):
            opened.enter_context(there)
        for part, label, file in zip(dataset.parts, labels, files, strict=True):
            prefix = f"{label}/".encode() if len(labels) > 1 else b""
            count, expected = 0, part.manifest.num_identities
            for line in file or (b"%d" % number for number in range(expected)):
                count += 1
                yield prefix + line.rstrip(b"\r\n") + b"\n"
            if count != expected:
                raise UserError(
                    f"{part.where}/{IDENTITIES}: {count:,} names of {expected:,} "
                    "identities; restore it, or remove it"
                )


def names_sha256(dataset: Dataset) -> str | None:
    """SHA-256 of what `write_names` writes, hexadecimal; None where the dataset has no names."""
    digest, any_name = hashlib.sha256(), False
    for line in name_lines(dataset):
        digest.update(line)
        any_name = True
    return digest.hexdigest() if any_name else None


def write_names(dataset: Dataset, to: Path) -> None:
    """Write the dataset's names to a file; where it has none, there is no such file afterwards.
    Raises `UserError` as `name_lines` does."""
    temporary = to.with_name(f".{to.name}.tmp")
    with temporary.open("wb") as file:
        file.writelines(name_lines(dataset))
    if temporary.stat().st_size:
        temporary.replace(to)
    else:
        temporary.unlink()
        to.unlink(missing_ok=True)


def short_names(paths: Sequence[Path]) -> list[str]:
    """What each path is called among the others: its last folders, as many as tell all apart,
    without a suffix."""
    parts = [
        path.resolve().with_suffix("" if path.is_file() else path.suffix).parts[1:]
        for path in paths
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


class Names:
    """Names by number, looked up by the million a second. Each takes 8 bytes besides its own."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column
        """Arrow's large_binary; each value ends with its line feed, so that its bytes are those of
        the file."""

    @classmethod
    def parse(cls, body: bytes) -> "Names":
        """The names in a file's bytes, one a line; lines may end as Windows has it, and the last
        one without a line feed."""
        body = body.replace(b"\r\n", b"\n")
        if body and not body.endswith(b"\n"):
            body += b"\n"
        offsets = np.append(
            0, np.flatnonzero(np.frombuffer(body, np.uint8) == ord("\n")) + 1
        ).astype(np.int64)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(body)]
        return cls(pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers))

    @classmethod
    def numbers(cls, count: int) -> "Names":
        """The names 0, 1, 2 ..: what classes are called that have no other names."""
        return cls(
            pc.binary_join_element_wise(pa.array(range(count)).cast(pa.string()), "", "\n").cast(
                pa.large_binary()
            )
        )

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, number: int) -> str:
        line: bytes = self._column[number].as_py()
        return line.decode(errors="replace").rstrip("\n")

    def __add__(self, others: "Names") -> "Names":
        return Names(pa.concat_arrays([self._column, others._column]))

    def after(self, prefix: str) -> "Names":
        """The same names, each with the prefix before it."""
        kind = pa.large_binary()
        return Names(
            pc.binary_join_element_wise(
                pa.scalar(prefix.encode(), kind), self._column, pa.scalar(b"", kind)
            )
        )

    def take(self, numbers: NDArray[np.int64]) -> "Names":
        """The names with these numbers, in this order."""
        return Names(self._column.take(pa.array(numbers)))

    def body(self) -> bytes:
        """The bytes of a file that has these names, one a line."""
        return (  # type: ignore[no-any-return]
            pa.concat_arrays([pa.array([], pa.large_binary()), self._column])
            .buffers()[2]
            .to_pybytes()
        )

    def find(self, wanted: "Names") -> NDArray[np.int64]:
        """The number of each wanted name here, -1 where it has none."""
        found = pc.fill_null(pc.index_in(wanted._column, value_set=self._column), -1)
        return np.frombuffer(found.buffers()[1], np.int32, len(found), 4 * found.offset).astype(
            np.int64
        )

    def twice(self) -> str | None:
        """A name that stands here more than once."""
        again = np.flatnonzero(self.find(self) != np.arange(len(self)))
        return self[int(again[0])] if len(again) else None

    def nearest(self, name: str) -> list[str]:
        """Up to three names spelt like it, of those that begin or end as it does: a slip of the
        finger leaves one half whole."""
        half = len(name.encode()) // 2
        begin, end = name.encode()[:half], name.encode()[-half:] + b"\n"
        alike = self._column.filter(
            pc.or_(pc.starts_with(self._column, begin), pc.ends_with(self._column, end))
        )
        spelt = [
            line.decode(errors="replace").rstrip("\n")
            for line in alike.slice(0, _COMPARED).to_pylist()
        ]
        return get_close_matches(name, spelt, 3)
