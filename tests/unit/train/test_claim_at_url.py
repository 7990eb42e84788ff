"""What the process that a person starts does about the store of a run at a URL before any worker
starts, and that it gives back what it took where that fails."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_head import made_head, write_checkpoint
from rich.console import Console
from store_server import Proxy

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load
from manyfaces.configs.schema import Config
from manyfaces.data.dataset.dataset import open_data
from manyfaces.train import run
from manyfaces.train.checkpoint.commit import Commit, read_commit
from manyfaces.train.checkpoint.store import RunStore
from manyfaces.train.folder import RunFolder
from manyfaces.train.lease import LeaseHeldError, refuse_held
from manyfaces.train.run_identity import identity_here, write_identity
from manyfaces.train.store_lease import take_store_lease


@pytest.fixture
def config(proxy: Proxy, dataset_path: Path, tmp_path: Path, request: Any) -> Config:
    """A run of its own for each test."""
    proxy.put("/bucket")
    path = tmp_path / "recipe.yaml"
    tree = {
        "run": {"dir": "s3://bucket/claims", "work_dir": str(tmp_path / "work")},
        "data": {"path": str(dataset_path), "image_px": 64},
        "model": {"kind": "mobilefacenet", "scale": 1, "embedding_dim": 32},
        "train": {"batch_size": 16, "epochs": 4},
        "checkpoint": {"store_patience_s": 20},
        "cluster": {"workers": 1, "launcher": "process"},
    }
    path.write_text(json.dumps(tree))  # which is YAML too
    return load(str(path), [f"run.name={request.node.name}"])


def store_of(config: Config) -> RunStore:
    return RunStore(f"s3://bucket/claims/{config.run.name}", 20)


def claimed(config: Config) -> Any:
    return run._claim(config, RunFolder.of(config), Console(), takeover=False)


def free(config: Config) -> None:
    """Raises `LeaseHeldError` where the run is not."""
    refuse_held(RunFolder.of(config).path)
    take_store_lease(store_of(config).remote, takeover=False).release()


def test_nobody_else_can_have_the_run_once_the_store_is_looked_at(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring = run.bring

    def guarded(store: RunStore, *given: Any, **named: Any) -> None:
        with pytest.raises(LeaseHeldError):
            take_store_lease(store.remote, takeover=False)
        bring(store, *given, **named)

    monkeypatch.setattr(run, "bring", guarded)
    held = claimed(config)
    assert store_of(config).read_record(["run.json"])
    held.release()
    free(config)


def test_another_experiment_of_the_name_is_refused_before_anything_is_changed(
    config: Config, tmp_path: Path
) -> None:
    theirs, store = RunFolder(tmp_path / "theirs"), store_of(config)
    theirs.path.mkdir()
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": 7})})
    write_identity(theirs, other, identity_here(other, open_data(other.data)))
    store.put_record(theirs.path, theirs.kept)
    with pytest.raises(UserError, match=r"s3://bucket/.*: the run exists with .*run.seed: 7 there"):
        claimed(config)
    assert not RunFolder.of(config).path.exists()
    assert store.remote.tree(".lease") == {}
    assert store.read_record(["run.json"])["run.json"] == theirs.identity.read_bytes()


def test_both_leases_are_given_back_where_the_claim_fails(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> None:
        raise UserError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "put_record", fails)
        with pytest.raises(UserError, match="is away"):
            claimed(config)
    free(config)
    held = claimed(config)
    with monkeypatch.context() as patch:
        patch.setattr(run, "share_stop", fails)
        with pytest.raises(UserError, match="is away"):
            run._run(config, RunFolder.of(config), Console(), held, 0.0)
    free(config)


def test_the_source_of_a_run_that_has_checkpoints_in_its_store_need_not_be_there(
    config: Config, tmp_path: Path
) -> None:
    source = "s3://bucket/claims/gone"
    update = {"run": config.run.model_copy(update={"resume_from": source})}
    config, folder = config.model_copy(update=update), RunFolder.of(config)
    with pytest.raises(UserError, match="gone: no checkpoint there"):
        run._with_source(config, folder)
    path = tmp_path / "run" / "checkpoints" / "step-00000001"
    write_checkpoint(path, ["a", "b"], made_head(2, 1))
    commit, store = read_commit(path), store_of(config)
    assert isinstance(commit, Commit)
    there = f"checkpoints/{path.name}"
    for name in (*commit.files, "COMMIT.json"):
        store.remote.upload(f"{there}/{name}", path / name)
    assert run._with_source(config, folder).run.resume_from == source
