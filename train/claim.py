"""Whether a run may have its folder: the same name means the same experiment."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from manyfaces.configs import plan, plan_lines
from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256, write_atomic
from manyfaces.configs.identity import differences, identity, tensors
from manyfaces.configs.load import dump, load_stored
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.dataset.names import names_sha256, write_names
from manyfaces.train.checkpoint.layout import STATE, candidates
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.folder import RunFolder

FORMAT = 2
FINGERPRINT = "data.fingerprint"


def claim(config: Config, dataset: Dataset, folder: RunFolder) -> None:
    """Make the run folder, or check that the one that stands is of the same experiment. Raises
    `UserError` with the differing keys."""
    mine = {**identity(config), FINGERPRINT: dataset.manifest.fingerprint}
    if folder.identity.exists():
        _compare(mine, _stored_identity(folder), folder)
    resume_from = config.run.resume_from
    if resume_from is not None and not candidates(folder.checkpoints):
        check_source(config, dataset, Path(resume_from))
    manifest = dataset.manifest
    planned = plan.plan(
        config, manifest.num_images, manifest.num_identities, plan.world_size(config)
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    # One that another process holds is told before anything of its run is touched.
    folder.lock(wait_s=1).close()
    for leftover in folder.path.glob(".ray-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    write_names(dataset, folder.path / IDENTITIES)  # each checkpoint holds a copy
    write_atomic(folder.identity, json.dumps(_to_store(config, mine), indent=1))
    write_atomic(folder.config, dump(config))
    lines = plan_lines.lines(planned)
    write_atomic(folder.plan, "".join(f"{label}: {text}\n" for label, text in lines))


def _to_store(config: Config, mine: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` holds: the tree, and the digests that cannot be made of it later."""
    digests = {key: mine[key] for key in mine if key.endswith("sha256") or key == FINGERPRINT}
    return {"format": FORMAT, "config": config.model_dump(mode="json"), "digests": digests}


def _stored_identity(folder: RunFolder) -> dict[str, Any]:
    """What the run that stands is, read from the tree that it began with: a field that has come
    since then has its default."""
    try:
        stored = json.loads(folder.identity.read_text())
        if stored.get("format") == FORMAT:
            tree, digests = stored["config"], stored["digests"]
        else:  # format 1 held the identity's own keys; the tree stood beside it
            tree = yaml.safe_load(folder.config.read_text())
            digests = {FINGERPRINT: stored[FINGERPRINT]}
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise UserError(
            f"{folder.identity}: cannot be read ({error!r}); give another run.name"
        ) from error
    known: dict[str, Any] = identity(load_stored(tree, str(folder.identity)))
    return {**known, **digests}


def _compare(mine: dict[str, Any], theirs: dict[str, Any], folder: RunFolder) -> None:
    keys = differences(mine, theirs)
    if not keys:
        return
    differing = "; ".join(f"{k}: {theirs.get(k)} there, {mine.get(k)} here" for k in keys)
    raise UserError(
        f"{folder.path}: the run exists with other settings: {differing}; give another run.name "
        "(with run.resume_from to start from its checkpoint), or the old values"
    )


def check_source(config: Config, dataset: Dataset, source: Path) -> None:
    """Raise `UserError` for a checkpoint of another run that this one cannot go on from."""
    if not (source / STATE).is_file():
        raise UserError(
            f"run.resume_from {source}: no checkpoint there; give a folder RUN/checkpoints/step-..."
        )
    state = RunState.read(source)
    remedy = "`manyfaces head remap` makes a checkpoint for this dataset of it"
    if (has := state.num_classes) != (wanted := dataset.manifest.num_identities):
        raise UserError(
            f"run.resume_from {source}: its {has:,} identities cannot continue as {wanted:,}; "
            f"{remedy}"
        )
    names = source / IDENTITIES
    if names.is_file() and names_sha256(dataset) not in (None, file_sha256(names)):
        raise UserError(
            f"run.resume_from {source}: its classes are other people than {dataset.where} has, or "
            f"in another order; {remedy}"
        )
    here, there = tensors(config), tensors(state.config)
    if keys := differences(here, there):
        key = keys[0]
        raise UserError(
            f"run.resume_from {source}: its {key} {there.get(key)} cannot continue as "
            f"{here.get(key)}"
        )
