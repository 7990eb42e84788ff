"""The index of shards that others keep at a URL: they stay there, and each is fetched once, read
and removed."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.redact import redact
from manyfaces.data.dataset.index_shards import (
    BYTES_AN_IMAGE,
    IndexedShard,
    commit_foreign_shards,
    index_shard,
)
from manyfaces.data.dataset.manifest import INDEX, MANIFEST, Manifest
from manyfaces.data.parallel import run_parallel
from manyfaces.data.store.remote import Remote


def index_url(
    url: str,
    out: Path | None = None,
    config: schema.Data | None = None,
    processes: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Manifest, str]:
    """Index the `.tar` files right below the URL; returns the manifest and the `data.path` of the
    dataset.

    That is the folder `out`, whose manifest says where the shards are; without it the URL itself,
    where index and manifest are then put. On the disk there is one shard for each process. `tell`
    gets a line for each reason for which members are left out. Raises `UserError` as `index_folder`
    does, and for a store that fails.
    """
    config = config or schema.Data()
    remote = Remote(url, config.store_patience_s)
    _refuse_place(remote, url, out)
    shards = remote.listing(".tar")
    if not shards:
        raise UserError(
            f"{url}: no .tar files there; shards in folders below it are not looked for"
        )
    # A listing over HTTP does not tell sizes; a shard that is not as long as the store says is cut.
    shards |= remote.sizes([name for name, size in shards.items() if size is None])
    folder = out
    if folder is None:
        digest = hashlib.sha256(redact(url).encode()).hexdigest()[:16]
        folder = Path(config.cache_dir).expanduser() / "indexed" / digest
    folder.mkdir(parents=True, exist_ok=True)
    if out is not None and any(out.glob("*.tar")):
        raise UserError(f"{out}: holds shards of its own; give another folder")
    tasks = [
        partial(_index_shard, url, config.store_patience_s, name, size, folder)
        for name, size in shards.items()
    ]
    weights = [max((size or 0) // BYTES_AN_IMAGE, 1) for size in shards.values()]
    indexed = run_parallel(tasks, weights, f"indexing {url}", processes)
    there = commit_foreign_shards(folder, indexed, url, tell)
    here = there.model_copy(update={"shards_url": redact(url)})
    write_atomic(folder / MANIFEST, _as_json(here))
    if out is not None:
        return here, str(out)
    try:
        remote.upload(INDEX, folder / INDEX)
        remote.write(MANIFEST, _as_json(there).encode())  # last: it vouches for the index
    except UserError as error:
        if redact(url) != url:  # the index here says where the shards are without the credentials
            raise
        raise UserError(
            f"{error}; the index is in {folder}, which is a data.path as it is"
        ) from error
    return there, url


def _refuse_place(remote: Remote, url: str, out: Path | None) -> None:
    """Raise `UserError` where the index cannot be kept there."""
    if out is None and remote.read_only:
        raise UserError(
            f"{url}: nothing can be written there; give --out FOLDER for the index, the shards "
            "stay where they are"
        )
    if out is not None and redact(url) != url:
        raise UserError(
            f"{url}: --out keeps the URL for whoever reads {out}, so that it may hold no "
            "credentials; give it without them, and set the store's own in the environment"
        )


def _as_json(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(), indent=1) + "\n"


def _index_shard(
    url: str, patience_s: float, name: str, size: int | None, folder: Path
) -> IndexedShard:
    """Fetch one shard, index it and remove it."""
    path = folder / f".{name}.part" / name
    path.parent.mkdir(exist_ok=True)
    try:
        Remote(url, patience_s).fetch(name, path, size, None)
        return index_shard(path)
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
