"""What a run is, as `run.json` keeps it: its configuration, and the digests of what it reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.identity import differences, identity
from manyfaces.configs.load import load_stored
from manyfaces.configs.redact import redacted
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.train.checkpoint.store import RunStore
from manyfaces.train.folder import RunFolder

FORMAT = 2
FINGERPRINT = "data.fingerprint"
_NOT_FITTING = (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)


def identity_here(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What decides the results of a run, by dotted key, as this process sees it."""
    return {**identity(config), FINGERPRINT: dataset.manifest.fingerprint}


def write_identity(folder: RunFolder, config: Config, here: dict[str, Any]) -> None:
    """Write `run.json`: the tree, and the digests that cannot be made of it later."""
    digests = {key: here[key] for key in here if key.endswith("sha256") or key == FINGERPRINT}
    tree = redacted(config).model_dump(mode="json")
    stored = {"format": FORMAT, "config": tree, "digests": digests}
    write_atomic(folder.identity, json.dumps(stored, indent=1))


def stored_identity(folder: RunFolder) -> dict[str, Any]:
    """What the run that stands is. Raises `UserError`."""
    return parsed_identity(folder.identity.read_bytes, folder.config.read_bytes, folder.identity)


def identity_in_store(store: RunStore) -> dict[str, Any] | None:
    """What the run that stands in the store is; None where it has none. Raises `UserError`."""
    run = RunFolder(Path())
    found = store.read_record([run.identity.name, run.config.name])
    if (body := found.get(run.identity.name)) is None:
        return None
    where = f"{store.where}/{run.identity.name}"
    return parsed_identity(lambda: body, lambda: found.get(run.config.name, b""), where)


def parsed_identity(
    read: Callable[[], bytes], read_config: Callable[[], bytes], where: Path | str
) -> dict[str, Any]:
    """What a run is, read from the tree that it began with: a field that has come since then has
    its default. `read` gives the bytes of its `run.json`, which is at `where`, and `read_config`
    those of its `config.yaml`. Raises `UserError`."""
    try:
        stored = json.loads(read())
        if stored.get("format") == FORMAT:
            tree, digests = stored["config"], stored["digests"]
        else:  # format 1 held the identity's own keys; the tree stood beside it
            tree = yaml.safe_load(read_config())
            digests = {FINGERPRINT: stored[FINGERPRINT]}
        known: dict[str, Any] = identity(load_stored(tree, str(where)))
        return {**known, **digests}
    except UserError:  # of another version's configuration, which it names
        raise
    except (OSError, RecursionError, *_NOT_FITTING) as error:
        raise UserError(f"{where}: cannot be read ({error!r}); give another run.name") from error


def differing(here: dict[str, Any], there: dict[str, Any]) -> str:
    """The keys that differ with both values, for people; "" where none does."""
    keys = differences(here, there)
    return "; ".join(f"{key}: {there.get(key)} there, {here.get(key)} here" for key in keys)


def check_worker(config: Config, dataset: Dataset, folder: RunFolder) -> None:
    """Raise `UserError` where this worker reads other files than the launching process did."""
    if not folder.identity.exists():
        return
    if told := differing(identity_here(config, dataset), stored_identity(folder)):
        raise UserError(
            f"this worker does not see what {folder.identity} was written with: {told}; was it "
            "written anew since the run was started, or is it another file on this node?"
        )
