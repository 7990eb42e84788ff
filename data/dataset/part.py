"""One folder or URL of a dataset, with its index in memory-mapped columns."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.redact import redact
from manyfaces.data.dataset.edits import Edits
from manyfaces.data.dataset.manifest import Manifest
from manyfaces.data.dataset.sample import TAR_NAME, member_at
from manyfaces.data.dataset.scan import scan
from manyfaces.data.store.cache import RemoteSource


@dataclass(frozen=True, eq=False)
class Part:
    """One folder or URL, and where its samples, classes and shards begin among those of the whole
    dataset; a part that stands alone begins at 0.

    A *row* is the number of a sample in the index of this part, and shards are numbered as in its
    manifest: the columns and all methods take these. The number of a sample in the whole dataset
    is its *id*, `first_sample + row`; only `slots`, `own_shards` and the result of `labels` are in
    the numbers of the whole.
    """

    path: Path
    """Folder of the index; for a remote dataset it lies in the node's cache."""
    manifest: Manifest
    shard_N: NDArray[np.uint32]
    offset_N: NDArray[np.uint64]
    size_N: NDArray[np.uint32]
    identity_N: NDArray[np.uint32]
    """Number of each sample's identity in this part, as edited."""
    remote: RemoteSource | None = None
    """Where the shards are, if at a URL."""
    edits: Edits | None = None
    """What was edited in the identities of the index; None where there is no `edits.arrow`."""
    first_sample: int = 0
    first_class: int = 0
    first_shard: int = 0

    @property
    def where(self) -> str:
        """The folder or URL, for people: without credentials."""
        if self.remote is not None and self.remote.with_index:
            return redact(self.remote.url)
        return str(self.path)

    @functools.cached_property
    def samples_per_shard(self) -> NDArray[np.int64]:
        """Number of samples in each shard."""
        return np.array([s.samples for s in self.manifest.shards], np.int64)

    @property
    def indexed_identity_N(self) -> NDArray[np.uint32]:  # noqa: N802
        """Number of each sample's identity as the index says, whatever was edited."""
        if self.edits is None:
            return self.identity_N
        indexed_N = self.identity_N.copy()
        indexed_N[self.edits.row_n] = self.edits.indexed_n
        return indexed_N

    def shard_path(self, shard: int) -> Path:
        """Where the shard lies on this node; a remote one only once it was fetched."""
        spec = self.manifest.shards[shard]
        return self.path / spec.name if self.remote is None else self.remote.shard_path(spec)

    def labels(self, rows_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Class ids of the rows' samples, int64 [N], in the numbers of the whole dataset."""
        return self.first_class + self.identity_N[rows_N].astype(np.int64)

    def name(self, row: int) -> str:
        """`SHARD:KEY` of the row's sample, for people."""
        shard = int(self.shard_N[row])
        try:
            key = member_at(self.shard_path(shard), int(self.offset_N[row]))[0]
        except OSError:
            key = ""
        return f"{self.manifest.shards[shard].name}:{key or f'sample {row}'}"

    def keys(self, rows_N: NDArray[np.int64]) -> list[str]:
        """`SHARD:KEY` of each row's sample, as `manyfaces data forget --keys` takes it. Raises
        `OSError` for a remote shard that is not here."""
        return [self._key(row, int(self.shard_N[row])) for row in rows_N.tolist()]

    def _key(self, row: int, shard: int) -> str:
        path = self.shard_path(shard)
        folder, slash, file = member_at(path, int(self.offset_N[row]))[0].rpartition("/")
        key = folder + slash + file.partition(".")[0]
        # A long name is cut off in the member's own header, and what is not ASCII may be replaced:
        # then the whole shard is asked.
        if not file or "?" in folder + file or len((folder + slash + file).encode()) >= TAR_NAME:
            key = _scanned_keys(path)[row - int(self.samples_per_shard[:shard].sum())]
        return f"{self.manifest.shards[shard].name}:{key}"

    def slots(self, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """At which places of an array of sample ids of the whole dataset this part's own stand."""
        return np.flatnonzero(
            (ids_N >= self.first_sample) & (ids_N < self.first_sample + self.manifest.num_images)
        )

    def own_shards(self, shards: NDArray[np.int64]) -> NDArray[np.int64]:
        """This part's own among shards of the whole dataset, by the numbers that they have in this
        part."""
        own = shards - self.first_shard
        return own[(own >= 0) & (own < len(self.manifest.shards))]


@functools.lru_cache(maxsize=2)
def _scanned_keys(shard: Path) -> list[str]:
    return [sample.key for sample in scan(shard)]
