"""MLflow heals: what was deleted there, what was never answered, names that it does not take."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import dump
from manyfaces.configs.schema import Config
from manyfaces.train.folder import RUN_FILE, RunFolder
from manyfaces.train.lease import LeaseHeldError, take_launch
from manyfaces.train.metric_names import fit_name
from manyfaces.train.record import METRICS, Record
from manyfaces.train.sync import sync_mlflow
from manyfaces.train.tracking import Mirror, last_status, tracking_uri

# MLflow's store warns of its own database layer.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def config(tmp_path: Path, empty_database: Path) -> Config:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Config.model_validate({"run": {"dir": str(tmp_path), "name": "r"}, "model": "vit"})


@pytest.fixture
def folder(config: Config) -> RunFolder:
    """A run of two steps that says nothing of its end."""
    folder = RunFolder.of(config)
    record = Record(folder.path)
    record.event("start", "began")
    record.metrics(1, **{"train/loss": 1.0, "lfw (1)/auc": 0.5})
    record.metrics(2, **{"train/loss": 2.0, "lfw [1]/auc": 0.6})
    folder.identity.write_text("{}")
    folder.config.write_text(dump(config))
    return folder


def client(config: Config) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(config))


def run_id(folder: RunFolder) -> str:
    return str(json.loads((folder.path / RUN_FILE).read_text())["run_id"])


def mirrored(folder: RunFolder, config: Config) -> Mirror:
    """A mirror that has sent all it could."""
    mirror = Mirror(folder.path, config, {"a.b": 1, "own (x)": 2}, period_s=60)
    mirror.close("FINISHED", folder.artifacts)
    return mirror


def steps(folder: RunFolder, config: Config, key: str = "train/loss") -> list[int]:
    return [m.step for m in client(config).get_metric_history(run_id(folder), key)]


def sync(folder: RunFolder, *words: str) -> str:
    console = Console(soft_wrap=True)
    with console.capture() as told:
        sync_mlflow(folder.path, words, console)
    return told.get()


def test_names_fit_mlflow_and_stay_distinct() -> None:
    from mlflow.utils.validation import _validate_metric_name

    for name in ("train/loss", "lfw/auc", "cfp-fp 2.0/tar_at.1e-4", "é/auc", "x" * 250):
        assert fit_name(name) == name
        _validate_metric_name(name)
    strange = ["lfw (1)/a", "lfw [1]/a", "lfw _1_/a:", "../a", "a//b", "/a", "a/", ".", "", "a:b",
               "%41/a", "a\n/b", "y" * 251, "y" * 252, "...", "..x/a"]  # fmt: skip
    fits = [fit_name(name) for name in strange]
    of_one_set = {fit_name(f"lfw (1)/{quantity}").partition("/")[0] for quantity in ("auc", "eer")}
    assert len(of_one_set) == 1
    assert len({*fits, *strange}) == 2 * len(strange)
    for name in fits:
        _validate_metric_name(name)
        assert len(name) <= 250


def test_a_set_that_a_browser_named_is_sent(config: Config, folder: RunFolder) -> None:
    assert mirrored(folder, config).problem == ""
    run = client(config).get_run(run_id(folder))
    assert run.info.status == "FINISHED"
    names = {fit_name("lfw (1)/auc"): 0.5, fit_name("lfw [1]/auc"): 0.6}
    assert run.data.metrics == {"train/loss": 2.0, **names}
    assert run.data.params == {"a.b": "1", fit_name("own (x)"): "2"}
    assert mirrored(folder, config).problem == ""
    assert steps(folder, config) == [1, 2]
    assert steps(folder, config, fit_name("lfw (1)/auc")) == [1]


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_what_was_deleted_in_mlflow_is_restored(
    what: str, config: Config, folder: RunFolder
) -> None:
    mirrored(folder, config)
    first = run_id(folder)
    there = client(config)
    if what == "run":
        there.delete_run(first)
    else:
        there.delete_experiment(there.get_run(first).info.experiment_id)
    Record(folder.path).metrics(3, **{"train/loss": 3.0})
    mirror = mirrored(folder, config)
    assert mirror.problem == ""
    assert run_id(folder) == first
    assert there.get_run(first).info.lifecycle_stage == "active"
    assert steps(folder, config) == [1, 2, 3]
    [note] = mirror.notes
    assert "had been deleted in sqlite:" in note


def test_a_deleted_experiment_is_left_where_another_is_named(
    config: Config, folder: RunFolder
) -> None:
    mirrored(folder, config)
    first, there = run_id(folder), client(config)
    there.delete_experiment(there.get_run(first).info.experiment_id)
    other = config.tracking.model_copy(update={"experiment": "other"})
    assert mirrored(folder, config.model_copy(update={"tracking": other})).problem == ""
    assert run_id(folder) != first
    assert there.get_run(first).info.lifecycle_stage == "deleted"
    assert steps(folder, config) == [1, 2]


def test_a_new_database_gets_everything(
    config: Config, folder: RunFolder, empty_database: Path, tmp_path: Path
) -> None:
    mirrored(folder, config)
    first = run_id(folder)
    # The store of MLflow keeps its connection to a removed file: this one it has never seen.
    moved = tmp_path / "moved"
    shutil.copytree(folder.path, moved / "r")
    shutil.copy(empty_database, moved / "mlflow.db")
    run = config.run.model_copy(update={"dir": str(moved)})
    config, folder = config.model_copy(update={"run": run}), RunFolder(moved / "r")
    kept = json.loads((folder.path / RUN_FILE).read_text())
    (folder.path / RUN_FILE).write_text(json.dumps({**kept, "uri": tracking_uri(config)}))
    mirror = mirrored(folder, config)
    assert mirror.problem == ""
    assert f"has no run {first} any more" in mirror.notes[0]
    assert run_id(folder) != first
    assert steps(folder, config) == [1, 2]


def test_a_run_whose_making_was_not_answered_is_found_again(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    make = MlflowClient.create_run

    def unanswered(*args: Any, **options: Any) -> None:
        make(*args, **options)
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", unanswered)
        assert "the answer was lost; `manyfaces sync" in mirrored(folder, config).problem
        patch.setattr(MlflowClient, "log_batch", unanswered)
        for _ in range(3):
            assert mirrored(folder, config).problem
    assert mirrored(folder, config).problem == ""
    there = client(config)
    experiment = there.get_experiment_by_name("manyfaces").experiment_id
    assert [run.info.run_id for run in there.search_runs([experiment])] == [run_id(folder)]
    assert there.get_run(run_id(folder)).data.params == {"a.b": "1", fit_name("own (x)"): "2"}


def test_a_final_refusal_is_told_as_final_and_the_rest_is_sent(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    def refused(*args: Any, **options: Any) -> None:
        raise MlflowException("not yours", PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "log_artifact", refused)
    problem = mirrored(folder, config).problem
    assert "not yours; that is final: ask for the right to write there, or give another" in problem
    assert problem.endswith(f"then `manyfaces sync-mlflow {folder.path}` sends the rest")
    assert client(config).get_run(run_id(folder)).info.status == "FINISHED"
    assert steps(folder, config) == [1, 2]


def test_sync_sends_what_is_missing_and_says_how_the_run_ended(
    config: Config, folder: RunFolder
) -> None:
    told = sync(folder)
    assert f"run {run_id(folder)}, KILLED, in sqlite:" in told
    Record(folder.path).metrics(3, **{"train/loss": 3.0})
    for kind, status in (("stopped", "FAILED"), ("start", "KILLED"), ("finished", "FINISHED")):
        Record(folder.path).event(kind, "so it was")
        assert last_status(folder.path) == status
    sync(folder)
    run = client(config).get_run(run_id(folder))
    assert run.info.status == "FINISHED"
    assert steps(folder, config) == [1, 2, 3]
    assert {file.path for file in client(config).list_artifacts(run.info.run_id)} == {"config.yaml"}
    sync(folder, "tracking.experiment=other")  # which changes nothing for a run that is there
    assert run_id(folder) == run.info.run_id


def test_sync_leaves_a_run_alone_that_is_written(folder: RunFolder, tmp_path: Path) -> None:
    lease = take_launch(folder.path)
    with pytest.raises(LeaseHeldError):
        sync(folder)
    lease.release()
    with pytest.raises(UserError, match="no run is there; give a run's folder"):
        sync_mlflow(tmp_path / "none", (), Console())


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_folder_that_no_database_address_can_name_is_refused(
    name: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config.run.model_copy(update={"dir": str(tmp_path / name)})
    config = config.model_copy(update={"run": run})
    with pytest.raises(UserError, match=r"MLflow's database cannot stand in .* with [?%] in its"):
        tracking_uri(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    assert tracking_uri(config) == "http://host"


def test_nothing_is_sent_of_a_run_that_was_taken_over(config: Config, folder: RunFolder) -> None:
    mirror = Mirror(folder.path, config, {}, period_s=60)
    mirror.abandon()
    assert mirror.close("FAILED", [folder.path / METRICS]) == ""
    assert not (folder.path / RUN_FILE).exists()
