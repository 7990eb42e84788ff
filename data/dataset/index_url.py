"""Index shards that others keep at an URL: they stay there; each is fetched once, looked at and let
go."""

import hashlib
import json
from functools import partial
from pathlib import Path

from manyfaces.configs import schema
from manyfaces.configs.schema import UserError
from manyfaces.data.dataset.index import INDEX, MANIFEST, Manifest, write_atomic
from manyfaces.data.dataset.write import Indexed, finish_foreign, index_shard, run_parallel
from manyfaces.data.store.remote import Remote


def index_url(
    url: str,
    out: Path | None = None,
    config: schema.Data | None = None,
    processes: int | None = None,
) -> tuple[Manifest, str]:
    """Index the `.tar` files right below the URL; returns the manifest and the `data.path` of the
    dataset.

    That is the folder `out`, whose manifest says where the shards are; without it the URL itself,
    where index and manifest are then put. On the disk there is one shard for each process. Raises
    `UserError` as `index_folder` does, and for a store that fails.
    """
    config = config or schema.Data()
    remote = Remote(url, config.store_patience_s)
    if out is None and remote.read_only:
        raise UserError(
            f"{url}: nothing can be written there; give --out FOLDER for the index, the shards "
            "stay where they are"
        )
    shards = remote.listing(".tar")
    if not shards:
        raise UserError(
            f"{url}: no .tar files there; shards in folders below it are not looked for"
        )
    folder = (
        out
        or Path(config.cache_dir).expanduser()
        / "indexed"
        / hashlib.sha256(url.encode()).hexdigest()[:16]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if out is not None and any(out.glob("*.tar")):
        raise UserError(f"{out}: holds shards of its own; give another folder")
    tasks = [
        partial(_index_shard, url, config.store_patience_s, name, size, folder)
        for name, size in shards.items()
    ]
    parts = run_parallel(
        tasks,
        [max((size or 0) // 6000, 1) for size in shards.values()],
        f"indexing {url}",
        processes,
    )
    there = finish_foreign(folder, parts, url)
    here = there.model_copy(update={"shards_url": url})
    write_atomic(folder / MANIFEST, json.dumps(here.model_dump(), indent=1) + "\n")
    if out is not None:
        return here, str(out)
    try:
        remote.upload(INDEX, folder / INDEX)
        remote.write(
            MANIFEST, (json.dumps(there.model_dump(), indent=1) + "\n").encode()
        )  # last: it vouches for the index
    except UserError as error:
        raise UserError(
            f"{error}; the index is in {folder}, which is a data.path as it is"
        ) from error
    return there, url


def _index_shard(url: str, patience_s: float, name: str, size: int | None, folder: Path) -> Indexed:
    path = folder / f".{name}.part" / name
    path.parent.mkdir(exist_ok=True)
    try:
        Remote(url, patience_s).fetch(name, path, size, None)
        return index_shard(path)
    finally:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
