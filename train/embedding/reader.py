"""Files of embeddings, read a row group at a time: millions of rows need no memory.

Shapes: N rows of a row group, D the embedding. Rows are counted over all files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.train.embedding.facts import EMBEDDING, Facts, read_facts
from manyfaces.train.embedding.job import Job
from manyfaces.train.evaluation.nearest import unit

_OPEN_FILES = 16
_REMEDY = "embed the images again, or restore it"


@dataclass(frozen=True)
class Row:
    """What a file says of one image, but for its embedding."""

    number: int
    """Counted over all files."""
    source: str
    row: int
    """The number of the image in its source."""
    key: str
    identity: str | None

    @property
    def name(self) -> str:
        """Source and key."""
        return f"{self.source}/{self.key}"


class Embeddings:
    """What `manyfaces embed` wrote: a file, or a folder of parts."""

    def __init__(self, path: Path) -> None:
        """Raises `UserError` for what is no embeddings, not all of them, or not of one kind."""
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; give what `manyfaces embed` wrote")
        self.path = path
        self._open = lru_cache(_OPEN_FILES)(_opened)
        self._groups: list[tuple[Path, int]] = []
        counts = [0]
        for file in _parts(path) if path.is_dir() else [path]:
            opened = self._open(file)
            facts = read_facts(opened.schema_arrow, str(file))
            if not self._groups:
                self.facts = facts
            self._refuse_others(file, facts)
            if not opened.schema_arrow.equals(facts.columns()):
                raise UserError(f"{file}: has other columns than its metadata say; {_REMEDY}")
            for group in range(opened.num_row_groups):
                self._groups.append((file, group))
                counts.append(opened.metadata.row_group(group).num_rows)
        self._starts = np.cumsum(counts)

    def _refuse_others(self, file: Path, facts: Facts) -> None:
        """Raise `UserError` for a file of another embedding than the first."""
        if facts != self.facts:
            raise UserError(
                f"{file}: holds embeddings of {facts.embedding_dim} numbers by {facts.model}, and "
                f"those beside it have {self.facts.embedding_dim} by {self.facts.model}; keep "
                "those of each `manyfaces embed` in a folder of their own"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All embeddings in the order of the rows, as unit vectors, float32 [N, D] a row group.
        Raises `UserError` for a file that cannot be read, and for numbers that are not finite."""
        for group in range(len(self._groups)):
            yield self._embeddings(group)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """What is said of some rows, in their order."""
        found: dict[int, Row] = {}
        for group, wanted in self._by_group(numbers).items():
            columns = ["source", "row", "key", "identity"]
            start = int(self._starts[group])
            table = self._read(group, columns).take(pa.array([n - start for n in wanted]))
            for number, row in zip(wanted, table.to_pylist(), strict=True):
                found[number] = Row(number, row["source"], row["row"], row["key"], row["identity"])
        return [found[number] for number in numbers]

    def embeddings(self, numbers: Sequence[int]) -> NDArray[np.float32]:
        """The embeddings of some rows as unit vectors, float32 [N, D], in their order."""
        found = np.empty((len(numbers), self.facts.embedding_dim), np.float32)
        place = {number: at for at, number in enumerate(numbers)}
        for group, wanted in self._by_group(numbers).items():
            block_ND = self._embeddings(group)
            for number in wanted:
                found[place[number]] = block_ND[number - int(self._starts[group])]
        return found[[place[number] for number in numbers]]

    def find(self, keys: Sequence[str]) -> dict[str, list[Row]]:
        """The rows that have each key, or are called so as `SOURCE/KEY`."""
        found: dict[str, list[Row]] = {key: [] for key in keys}
        wanted = pa.array(list(found), pa.string())
        for group in range(len(self._groups)):
            table = self._read(group, ["source", "key"])
            names = pc.binary_join_element_wise(table["source"], table["key"], "/")
            is_it = pc.or_(pc.is_in(table["key"], wanted), pc.is_in(names, wanted))
            places = np.flatnonzero(is_it.combine_chunks().to_numpy(zero_copy_only=False))
            for row in self.rows([int(self._starts[group]) + place for place in places.tolist()]):
                for called in {row.key, row.name} & found.keys():
                    found[called].append(row)
        return found

    def _by_group(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        groups = np.searchsorted(self._starts, np.array(numbers, np.int64), "right") - 1
        wanted: dict[int, list[int]] = {}
        for number, group in zip(numbers, groups.tolist(), strict=True):
            wanted.setdefault(group, []).append(number)
        return wanted

    def _embeddings(self, group: int) -> NDArray[np.float32]:
        column = self._read(group, [EMBEDDING])[EMBEDDING].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        block_ND: NDArray[np.float32] = flat.reshape(-1, self.facts.embedding_dim)
        if self.facts.options.normalised and block_ND.dtype == np.float32:
            return block_ND
        return unit(block_ND)

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        file, number = self._groups[group]
        try:
            return self._open(file).read_row_group(number, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.path, error) from error


def _parts(folder: Path) -> list[Path]:
    """The files of a folder of parts. Raises `UserError` where some are missing."""
    job = Job(folder)
    if not job.has_plan():
        raise UserError(f"{folder}: holds no embeddings; give what `manyfaces embed` wrote")
    plan = job.plan()
    if missing := job.missing(plan):
        raise UserError(
            f"{folder}: {len(missing)} of its {plan.num_parts} parts are missing; the same "
            "`manyfaces embed` goes on with them"
        )
    return [job.part(number) for number in range(plan.num_parts)]


def _opened(file: Path) -> Any:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{file}: not a whole parquet file ({why}); {_REMEDY}")
