"""What was edited in a dataset: `edits.arrow` beside it says which samples were dropped and which
have another identity than the index says, each with a reason and a score.

Shards and index stay as they are. A dropped sample keeps its place in the order, with label -1, and
no other sample moves, so that runs resume; the fingerprint is the same. A job heeds the file from
its next start; `compact` makes a dataset in which the edits are real, and without the file the
dataset is as it was.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.data.dataset.manifest import EDITS, INDEX, Manifest

DROPPED = -1
"""The identity of a dropped sample in `edits.arrow`."""
SCHEMA = pa.schema(
    {"row": pa.int64(), "identity": pa.int64(), "reason": pa.string(), "score": pa.float32()}
)
_SHA256 = b"index_sha256"
_REMEDY = "restore it, or remove it and run `manyfaces data relabel` again"


@dataclass(frozen=True, eq=False)
class Edits:
    """The edited samples of one part, by ascending row; [n] each."""

    row_n: NDArray[np.int64]
    identity_n: NDArray[np.int64]
    """The identity that each has now; -1 where it was dropped."""
    indexed_n: NDArray[np.int64]
    """The identity that the index says."""

    @property
    def dropped(self) -> NDArray[np.int64]:
        """The rows of the dropped samples."""
        dropped_n: NDArray[np.int64] = self.row_n[self.identity_n == DROPPED]
        return dropped_n

    def in_words(self) -> str:
        """How much was edited."""
        dropped = len(self.dropped)
        return f"{len(self.row_n) - dropped:,} images relabelled, {dropped:,} dropped"


def apply_edits(
    where: str, folder: Path, manifest: Manifest, identity_N: NDArray[np.uint32]
) -> tuple[NDArray[np.uint32], Edits | None]:
    """The identities of the part in `folder` with `edits.arrow` applied to those of the index, and
    the edits; as they are and None where there is no such file. Memory is taken only for those
    pages of the index that change. Raises `UserError` for a file that cannot be read or is not of
    this index."""
    table = read_table(where, folder, manifest)
    if table is None:
        return identity_N, None
    row_n, new_n = integers(table, "row"), integers(table, "identity")
    edits = Edits(row_n, new_n, identity_N[row_n].astype(np.int64))
    moved_n = new_n != DROPPED
    if not moved_n.any():
        return identity_N, edits
    edited_N = _private_copy(folder / INDEX, identity_N)
    edited_N[row_n[moved_n]] = new_n[moved_n]
    edited_N.flags.writeable = False
    return edited_N, edits


def read_table(where: str, folder: Path, manifest: Manifest) -> pa.Table | None:
    """The rows of `edits.arrow` with the columns of `SCHEMA`; None where there is no such file.
    Raises `UserError` as `apply_edits` does."""
    try:
        body = (folder / EDITS).read_bytes()
        table = pa.ipc.open_file(pa.py_buffer(body)).read_all()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where}/{EDITS}: cannot be read ({error}); {_REMEDY}") from error
    if not table.schema.equals(SCHEMA) or any(table[n].null_count for n in ("row", "identity")):
        raise UserError(f"{where}/{EDITS}: has other columns than edits have; {_REMEDY}")
    if (table.schema.metadata or {}).get(_SHA256) != manifest.index_sha256.encode():
        raise UserError(
            f"{where}/{EDITS}: is of another index than the dataset has now; remove it and run "
            "`manyfaces data relabel` again"
        )
    for name, least, limit in (
        ("row", 0, manifest.num_images),
        ("identity", DROPPED, manifest.num_identities),
    ):
        values = integers(table, name)
        if len(values) and not least <= values.min() <= values.max() < limit:
            raise UserError(f"{where}/{EDITS}: a {name} is not in [{least}, {limit}); {_REMEDY}")
        if name == "row" and (np.diff(values) <= 0).any():
            raise UserError(f"{where}/{EDITS}: rows do not ascend; {_REMEDY}")
    return table


def write_table(folder: Path, manifest: Manifest, table: pa.Table) -> None:
    """Write `edits.arrow` for the dataset with this manifest, at once."""
    sink = pa.BufferOutputStream()
    schema = SCHEMA.with_metadata({_SHA256: manifest.index_sha256})
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table.cast(SCHEMA).replace_schema_metadata(schema.metadata))
    write_atomic(folder / EDITS, sink.getvalue().to_pybytes())


def integers(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column of whole numbers, int64."""
    chunks = [np.from_dlpack(chunk) for chunk in table[name].chunks if len(chunk)]
    return np.concatenate([np.empty(0, np.int64), *chunks])


def _private_copy(index: Path, identity_N: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The mapped column as a copy-on-write mapping of the same file."""
    source = pa.memory_map(str(index))
    start = source.read_buffer().address
    source.seek(0)
    column = pa.ipc.open_file(source).get_batch(0).column("identity")
    offset = column.buffers()[1].address - start + 4 * column.offset
    mapped = np.memmap(index, np.uint32, "c", offset, (len(identity_N),))
    return mapped.view(np.ndarray)
