"""The right to be forgotten: `forgotten.json` beside a dataset lists identities and samples that no
job sees again.

A forgotten sample keeps its place in the order, with label -1, so that no other sample moves and
runs resume. The shards still hold the bytes, and older checkpoints the centres, until they are
removed: `compact` makes a dataset without them.
"""

import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import FORGOTTEN, Dataset, Manifest, write_atomic
from manyfaces.data.dataset.mixture import AnyDataset
from manyfaces.data.dataset.names import open_names
from manyfaces.data.dataset.sample import member_at, scan
from manyfaces.data.dataset.write import IDENTITIES, Item, run_parallel, write_dataset
from manyfaces.data.store.remote import Remote


@dataclass(frozen=True)
class Forgotten:
    """Sample ids and class ids, int64, sorted."""

    samples: NDArray[np.int64]
    identities: NDArray[np.int64]

    def among(self, dataset: AnyDataset, ids_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the samples are forgotten, bool [N]."""
        if not len(self.samples) and not len(self.identities):
            return np.zeros(len(ids_N), bool)
        return np.isin(ids_N, self.samples) | np.isin(dataset.labels(ids_N), self.identities)


def read_forgotten(dataset: AnyDataset) -> Forgotten:
    """What stands in `forgotten.json` of each part; nothing where there is none. Raises `UserError`
    if it was written for another index."""
    told = [(part, _read_own(part.dataset)) for part in dataset.parts]
    samples = [part.first_sample + own.samples for part, own in told]
    return Forgotten(
        np.concatenate(samples),
        np.concatenate([part.first_class + own.identities for part, own in told]),
    )


def _read_own(dataset: Dataset) -> Forgotten:
    file = dataset.path / FORGOTTEN
    if not file.exists():
        return Forgotten(np.empty(0, np.int64), np.empty(0, np.int64))
    try:
        told = json.loads(file.read_text())
        samples, identities, index = told["samples"], told["identities"], told["index_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error!r}); restore it, or forget the same people again and "
            "remove it"
        ) from error
    if index != dataset.manifest.index_sha256:
        raise UserError(
            f"{file}: is of another index than {dataset.path} has now; remove it and run "
            "`manyfaces data forget` again"
        )
    return Forgotten(np.array(samples, np.int64), np.array(identities, np.int64))


def forget(
    dataset: Dataset, identities: Sequence[str], keys: Sequence[str], processes: int | None = None
) -> Forgotten:
    """Add identities (class ids, or names of `identities.txt`) and samples (`KEY` or `SHARD:KEY`)
    to what is forgotten; returns it all.

    An identity whose last sample goes is forgotten too. Raises `UserError` naming each that is not
    there; then nothing is changed.
    """
    known = read_forgotten(dataset)
    classes = np.union1d(known.identities, _class_ids(dataset, identities))
    samples = np.union1d(known.samples, _sample_ids(dataset, keys, processes))
    touched = np.setdiff1d(np.unique(dataset.identity_N[samples]).astype(np.int64), classes)
    if len(touched):  # whether any sample of theirs is left
        of_theirs = np.flatnonzero(np.isin(dataset.identity_N, touched))
        left = np.unique(dataset.identity_N[np.setdiff1d(of_theirs, samples)])
        classes = np.union1d(classes, np.setdiff1d(touched, left))
    told = {
        "index_sha256": dataset.manifest.index_sha256,
        "identities": classes.tolist(),
        "samples": samples.tolist(),
    }
    body = json.dumps(told) + "\n"
    if dataset.far is not None and dataset.far.with_index:
        Remote(dataset.far.url, dataset.far.patience_s).write(FORGOTTEN, body.encode())
    write_atomic(dataset.path / FORGOTTEN, body)
    return Forgotten(samples, classes)


def compact(dataset: Dataset, out: Path, processes: int | None = None) -> Manifest:
    """A new dataset in `out` without what is forgotten: samples in the same order, JPEG bytes as
    they are, class ids closed up.

    It has another fingerprint, so it is another experiment to a run. Raises `UserError`.
    """
    if dataset.far is not None:
        raise UserError(
            f"{dataset.where}: a remote dataset cannot be compacted; do it in a local copy"
        )
    with identity_names(dataset) as lines:
        names = [line.rstrip("\n") for line in lines] or [
            str(i) for i in range(dataset.manifest.num_identities)
        ]
    everyone = np.arange(dataset.manifest.num_images)
    ids = everyone[~read_forgotten(dataset).among(dataset, everyone)]
    if not len(ids):
        raise UserError(f"{dataset.where}: everything in it is forgotten")
    left, class_N = np.unique(dataset.identity_N[ids], return_inverse=True)
    kept = _Kept(dataset, ids, class_N)
    source: dict[str, object] = {
        "source": "compact",
        "of": dataset.manifest.fingerprint,
        "samples": len(ids),
    }
    shard_images = max(shard.samples for shard in dataset.manifest.shards)
    return write_dataset(
        out,
        kept,
        _read_part,
        [names[i] for i in left],
        source=source,
        shard_images=shard_images,
        processes=processes,
        template=dataset.manifest.template,
    )


class _Kept:
    """Samples of a dataset as items, made a shard at a time."""

    def __init__(
        self, dataset: Dataset, ids: NDArray[np.int64], class_N: NDArray[np.int64]
    ) -> None:
        self.dataset, self.ids, self.class_N = dataset, ids, class_N

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> list[Item]:
        return [
            self._item(i, c)
            for i, c in zip(self.ids[part].tolist(), self.class_N[part].tolist(), strict=True)
        ]

    def _item(self, sample: int, class_id: int) -> Item:
        path, offset = (
            self.dataset.shard_path(int(self.dataset.shard_N[sample])),
            int(self.dataset.offset_N[sample]),
        )
        folder, slash, file = member_at(path, offset)[0].rpartition("/")
        return Item(
            (path, offset, int(self.dataset.size_N[sample])),
            folder + slash + file.partition(".")[0],
            class_id,
        )


def _read_part(source: object) -> bytes:
    assert isinstance(source, tuple)
    path, offset, size = source
    with path.open("rb") as file:
        return os.pread(file.fileno(), size, offset)


def _class_ids(dataset: Dataset, identities: Iterable[str]) -> NDArray[np.int64]:
    """A name is looked for before a number is taken for a class id."""
    wanted = list(dict.fromkeys(identities))
    with identity_names(dataset) as lines:
        wanted_set = set(wanted)
        found = {
            name: number
            for number, line in enumerate(lines)
            if (name := line.rstrip("\n")) in wanted_set
        }
    limit = dataset.manifest.num_identities
    found |= {
        w: int(w)
        for w in wanted
        if w not in found and re.fullmatch(r"[0-9]{1,18}", w) and int(w) < limit
    }
    if missing := [w for w in wanted if w not in found]:
        raise UserError(
            f"{dataset.path}: no identity {', '.join(missing[:5])}; give class ids in [0, {limit}) "
            f"or names of {IDENTITIES}"
        )
    return np.array([found[w] for w in wanted], np.int64)


def identity_names(dataset: Dataset) -> IO[str]:
    """The lines of `identities.txt`, none where there is no such file."""
    return io.TextIOWrapper(open_names(dataset) or io.BytesIO(), "utf-8", errors="replace")


def _sample_ids(dataset: Dataset, keys: Iterable[str], processes: int | None) -> NDArray[np.int64]:
    """Keys are in the shards only: all shards' headers are read, or those that the keys name."""
    wanted = {re.sub(r"\.jpe?g$", "", key) for key in keys}
    if not wanted:
        return np.empty(0, np.int64)
    if dataset.far is not None:
        raise UserError(
            f"{dataset.far.url}: keys stand in the shards only; forget them in a local copy and "
            f"put its {FORGOTTEN} there"
        )
    names = [shard.name for shard in dataset.manifest.shards]
    named = {key.split(":", 1)[0] for key in wanted if ":" in key}
    shards = [
        n for n, name in enumerate(names) if name in named or any(":" not in key for key in wanted)
    ]
    tasks = [partial(_rows_of, dataset.shard_path(n), names[n], wanted) for n in shards]
    found = run_parallel(
        tasks, [dataset.manifest.shards[n].samples for n in shards], "looking for keys", processes
    )
    if missing := sorted(wanted - {key for part in found for key, _ in part}):
        shown = ", ".join(missing[:5]) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise UserError(
            f"{dataset.path}: no sample with key {shown}; give one key a line, KEY or SHARD:KEY as "
            "`tar -t` lists them"
        )
    first = np.cumsum(dataset.samples_per_shard) - dataset.samples_per_shard
    return np.unique(
        [int(first[n]) + row for n, part in zip(shards, found, strict=True) for _, row in part]
    ).astype(np.int64)


def _rows_of(shard: Path, name: str, wanted: set[str]) -> list[tuple[str, int]]:
    """(wanted key, row in the shard) of each sample that is one; a bare key may be in several
    shards."""
    return [
        (key, row)
        for row, sample in enumerate(scan(shard))
        for key in (sample.key, f"{name}:{sample.key}")
        if key in wanted
    ]
