"""The files of embeddings: a part at a time, and all parts together as one file.

Shapes: N images of a part, D the embedding.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manyfaces.configs.files import write_atomic
from manyfaces.train.embedding.facts import EMBEDDING, Facts
from manyfaces.train.embedding.job import Job, Plan
from manyfaces.train.embedding.source import Image, ImageSource

_GROUP_ROWS = 1 << 14
"""Rows of a row group of the one file, at least as long as there are more."""


class PartRows:
    """The rows of one part as they come, in their order, and the images that get none."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._columns: dict[str, list[object]] = {
            name: [] for name in ("source", "row", "key", "identity")
        }
        self._embeddings: list[NDArray[np.float32]] = []
        self._norms: list[NDArray[np.float32]] = []
        self._scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in facts.scores}
        self._failed: list[str] = []

    def add(
        self,
        images: Sequence[tuple[ImageSource, Image]],
        embeddings_ND: NDArray[np.float32],
        norm_N: NDArray[np.float32],
        scores: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Add images and what the network gives for each."""
        for source, image in images:
            values = (source.where, image.row, image.key, image.identity)
            for column, value in zip(self._columns.values(), values, strict=True):
                column.append(value)
        self._embeddings.append(embeddings_ND)
        self._norms.append(norm_N)
        for name, of_batch in scores.items():
            self._scores[name].append(of_batch)

    def add_failed(self, source: ImageSource, image: Image, fault: str) -> None:
        """Add an image that could not be embedded, and why."""
        named = {"source": source.where, "row": image.row, "key": image.key, "fault": fault}
        self._failed.append(json.dumps(named, ensure_ascii=False))

    def write(self, path: Path, failed: Path) -> None:
        """Write the file, whole or not at all, and before it the list of what is not in it. Raises
        `OSError`."""
        if self._failed:
            write_atomic(failed, "".join(f"{line}\n" for line in self._failed))
        else:
            failed.unlink(missing_ok=True)
        schema = self.facts.columns()
        arrays = {
            name: pa.array(values, schema.field(name).type)
            for name, values in self._columns.items()
        }
        arrays["norm"] = _joined(self._norms, pa.float32())
        for name, values in self._scores.items():
            arrays[name] = _joined(values, pa.float32())
        kind = schema.field(EMBEDDING).type
        flat = _joined([each.reshape(-1) for each in self._embeddings], kind.value_type)
        arrays[EMBEDDING] = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        table = pa.table([arrays[name] for name in schema.names], schema)
        with written_whole(path) as temporary, _writer(temporary, schema) as writer:
            writer.write_table(table)


def _joined(parts: list[NDArray[np.float32]], kind: pa.DataType) -> pa.Array:
    joined = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return pa.array(joined.astype(np.float16) if kind == pa.float16() else joined, kind)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Embeddings do not compress, and to try takes longer than to make them."""
    texts = ["source", "identity"]
    compression = {name: "zstd" for name in schema.names if name != EMBEDDING}
    compression[f"{EMBEDDING}.list.element"] = "none"
    return pq.ParquetWriter(
        path, schema, compression=compression, use_dictionary=texts, write_statistics=["row"]
    )


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name for a file that is at `path` once the block ends without an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def join_parts(job: Job, plan: Plan, out: Path) -> None:
    """Write all parts as one file, in their order. A few row groups are in memory at a time. Raises
    `OSError`."""
    schema = plan.facts.columns()
    held: list[pa.Table] = []
    with written_whole(out) as temporary, _writer(temporary, schema) as writer:
        for part in range(plan.num_parts):
            held.append(pq.read_table(job.part(part), schema=schema))
            if sum(map(len, held)) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(held))
                held.clear()
        if held:
            writer.write_table(pa.concat_tables(held))


def write_failed(job: Job, plan: Plan, file: Path) -> tuple[int, int]:
    """List in a file the images that could not be embedded, one JSON object a line; where there are
    none, there is no such file afterwards. Returns how many images were embedded, and how many
    not."""
    rows = sum(pq.read_metadata(job.part(part)).num_rows for part in range(plan.num_parts))
    lists = [job.failed(part) for part in range(plan.num_parts)]
    lines = [line for each in lists if each.exists() for line in each.read_text().splitlines()]
    if lines:
        write_atomic(file, "".join(f"{line}\n" for line in lines))
    else:
        file.unlink(missing_ok=True)
    return rows, len(lines)
