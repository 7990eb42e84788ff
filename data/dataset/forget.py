"""Add people and images to what is forgotten in a dataset folder: see `forgotten.py`."""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.data.dataset.forgotten import Forgotten, parse_forgotten, read_forgotten_file
from manyfaces.data.dataset.manifest import EDITS, FORGOTTEN, IDENTITIES
from manyfaces.data.dataset.names import identity_names
from manyfaces.data.dataset.part import Part
from manyfaces.data.dataset.scan import scan
from manyfaces.data.parallel import run_parallel
from manyfaces.data.store.cache import RemoteSource
from manyfaces.data.store.lock import store_lock
from manyfaces.data.store.remote import Remote

FORGOTTEN_LOCK = f"{FORGOTTEN}.lock"
_TRIES = 10


def forget(
    part: Part, identities: Sequence[str], keys: Sequence[str], processes: int | None = None
) -> Forgotten:
    """Add identities (class ids, or names of `identities.txt`) and samples (`KEY` or `SHARD:KEY`)
    to what is forgotten; returns all that is forgotten then.

    An identity whose last sample goes is forgotten too. Of several requests at once none is lost in
    a folder whose file system has locks; at a URL as far as `store_lock` holds. Raises `UserError`
    naming each that is not there; then nothing is changed.
    """
    rows, classes = rows_of_keys(part, keys, processes), class_ids(part, identities)
    if part.edits is not None:  # those who were given one of these identities go with it
        given = part.edits.row_n[np.isin(part.edits.identity_n, classes)]
        rows[""] = given.tolist()
    more = Forgotten(
        np.unique(np.array(list(chain.from_iterable(rows.values())), np.int64)), classes
    )
    if part.remote is not None and part.remote.with_index:
        return _forget_at_url(part, part.remote, more)
    # A file of its own, open for writing: network file systems lock nothing else.
    with (part.path / f".{FORGOTTEN_LOCK}").open("a") as lock:
        with contextlib.suppress(OSError):  # of a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Of two requests at once the second finds what the first has written.
        merged = _merged(part, read_forgotten_file(part), more)
        write_atomic(part.path / FORGOTTEN, _body(part, merged))
        return merged


def _forget_at_url(part: Part, source: RemoteSource, more: Forgotten) -> Forgotten:
    """Add to what is forgotten at the URL, and in the node's copy of it."""
    remote, where = Remote(source.url, source.patience_s), f"{source.url}/{FORGOTTEN}"
    if remote.read_only:
        raise UserError(
            f"{source.url}: nothing can be written there; forget in a local copy and put its "
            f"{FORGOTTEN} there"
        )
    body = b""
    with store_lock(remote, FORGOTTEN_LOCK):
        for _ in range(_TRIES):
            there = remote.read_if_there(FORGOTTEN)
            if body and there == body:
                write_atomic(part.path / FORGOTTEN, body)
                return parse_forgotten(body, where, part.manifest)
            known = parse_forgotten(there, where, part.manifest)
            body = _body(part, _merged(part, known, more)).encode()
            remote.write(FORGOTTEN, body)
    raise UserError(f"{where}: other requests write it all the time; run the same command again")


def _body(part: Part, forgotten: Forgotten) -> str:
    """The text of `forgotten.json`."""
    told = {
        "index_sha256": part.manifest.index_sha256,
        "identities": forgotten.identities.tolist(),
        "samples": forgotten.samples.tolist(),
    }
    return json.dumps(told) + "\n"


def _merged(part: Part, known: Forgotten, more: Forgotten) -> Forgotten:
    """What is forgotten with more added, and with it the identities that have no sample left."""
    classes = np.union1d(known.identities, more.identities)
    samples = np.union1d(known.samples, more.samples)
    # As the index has them: edits may be taken back, and what they empty is found when read.
    identity_N = part.indexed_identity_N
    touched = np.setdiff1d(np.unique(identity_N[samples]).astype(np.int64), classes)
    if len(touched):  # whether any sample of theirs is left
        of_theirs = np.flatnonzero(np.isin(identity_N, touched))
        left = np.unique(identity_N[np.setdiff1d(of_theirs, samples)])
        classes = np.union1d(classes, np.setdiff1d(touched, left))
    return Forgotten(samples, classes)


def class_ids(part: Part, identities: Iterable[str]) -> NDArray[np.int64]:
    """The numbers of these identities in the part, int64, without repetitions; a name is looked for
    before a number is taken for a class id. Raises `UserError` naming each that is not there."""
    wanted = list(dict.fromkeys(identities))
    with identity_names(part) as lines:
        wanted_set = set(wanted)
        found = {
            name: number
            for number, line in enumerate(lines)
            if (name := line.rstrip("\n")) in wanted_set
        }
    limit = part.manifest.num_identities
    found |= {
        w: int(w)
        for w in wanted
        if w not in found and re.fullmatch(r"[0-9]{1,18}", w) and int(w) < limit
    }
    if missing := [w for w in wanted if w not in found]:
        raise UserError(
            f"{part.path}: no identity {', '.join(missing[:5])}; give class ids in [0, {limit}) "
            f"or names of {IDENTITIES}"
        )
    return np.array([found[w] for w in wanted], np.int64)


def without_suffix(key: str) -> str:
    """The key of a sample, without the suffix that people copy along with it."""
    return re.sub(r"\.jpe?g$", "", key)


def rows_of_keys(
    part: Part, keys: Iterable[str], processes: int | None = None
) -> dict[str, list[int]]:
    """The rows of the samples with each of these keys, which lose a suffix of JPEG. Keys are in the
    shards only: the headers of all shards are read, or of those that the keys name. Raises
    `UserError` naming those that are not there."""
    wanted = {without_suffix(key) for key in keys}
    if not wanted:
        return {}
    if part.remote is not None:
        raise UserError(
            f"{part.remote.url}: keys stand in the shards only; name them in a local copy and "
            f"put its {FORGOTTEN} or {EDITS} there"
        )
    names = [shard.name for shard in part.manifest.shards]
    named = {key.split(":", 1)[0] for key in wanted if ":" in key}
    some_bare = any(":" not in key for key in wanted)
    shards = [n for n, name in enumerate(names) if name in named or some_bare]
    tasks = [partial(_rows_of, part.shard_path(n), names[n], wanted) for n in shards]
    found = run_parallel(
        tasks, [part.manifest.shards[n].samples for n in shards], "looking for keys", processes
    )
    if missing := sorted(wanted - {key for rows in found for key, _ in rows}):
        shown = ", ".join(missing[:5])
        if len(missing) > 5:
            shown += f" and {len(missing) - 5} more"
        raise UserError(
            f"{part.path}: no sample with key {shown}; give one key a line, KEY or SHARD:KEY as "
            "`tar -t` lists them"
        )
    first = np.cumsum(part.samples_per_shard) - part.samples_per_shard
    rows_of: dict[str, list[int]] = {}
    for shard, rows in zip(shards, found, strict=True):
        for key, row in rows:
            rows_of.setdefault(key, []).append(int(first[shard]) + row)
    return rows_of


def _rows_of(shard: Path, name: str, wanted: set[str]) -> list[tuple[str, int]]:
    """(wanted key, row in the shard) of each sample that is one; a bare key may be in several
    shards."""
    return [
        (key, row)
        for row, sample in enumerate(scan(shard))
        for key in (sample.key, f"{name}:{sample.key}")
        if key in wanted
    ]
