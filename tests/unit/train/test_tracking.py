"""MLflow heals: what was deleted there, what was never answered, names that it does not take."""

import io
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from waiting import wait_until

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import dump
from manyfaces.configs.schema import Config
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.train.evaluation.exported import write_exported
from manyfaces.train.evaluation.model import Model as EncoderModel
from manyfaces.train.evaluation.report import report_folder, save_report
from manyfaces.train.evaluation.result import Quantity, Result
from manyfaces.train.folder import RUN_FILE, RunFolder
from manyfaces.train.lease import LeaseHeldError, take_launch
from manyfaces.train.metric_names import fit_name, shown_name
from manyfaces.train.record import EVENTS, METRICS, Record, append_row, read_rows
from manyfaces.train.sync import record_evaluation, sync_mlflow
from manyfaces.train.tracking.find import KIND, TAG, TRAINING
from manyfaces.train.tracking.mirror import Mirror, last_status
from manyfaces.train.tracking.model import ExportedModel
from manyfaces.train.tracking.place import mlflow_run, opening_lines, tracking_uri
from manyfaces.train.tracking.server import Server

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


def attempts_of(folder: RunFolder, config: Config) -> list[Any]:
    """The runs below the run, the first attempt first."""
    there = client(config)
    experiment = there.get_run(run_id(folder)).info.experiment_id
    below = f"tags.`mlflow.parentRunId` = '{run_id(folder)}'"
    return list(there.search_runs([experiment], below, order_by=["attributes.start_time ASC"]))


def known_attempts(folder: RunFolder, config: Config) -> list[Any]:
    """The same while the run may not be there yet."""
    return attempts_of(folder, config) if mlflow_run(folder.path) else []


def artifacts(folder: RunFolder, config: Config) -> set[str]:
    """The names at the top of the run's artifacts, while it may not be there yet."""
    if mlflow_run(folder.path) is None:
        return set()
    return {file.path for file in client(config).list_artifacts(run_id(folder))}


def made_encoder() -> Encoder:
    """A network with weights of chance."""
    model = Config.model_validate(
        {"model": {"kind": "mobilefacenet", "scale": 1, "embedding_dim": 16}}
    ).model
    backbone = model.build(image_hw=(32, 32)).eval()
    return Encoder(backbone, model, (32, 32), torch.device("cpu"), False)


def unanswered(*args: Any, **options: Any) -> None:
    """What a client's call does that the server does not answer."""
    raise ConnectionError("the answer was lost")


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


def test_numbers_stand_in_the_groups_that_pages_show() -> None:
    names = {
        "train/loss": "train/loss",
        "images_per_s": "train/images_per_s",
        "start/all_s": "start/all_s",
        "lfw/accuracy": "eval/lfw/accuracy",
        "system/host/cpu": "system/host/cpu",
    }
    assert {name: shown_name(name) for name in names} == names


def test_a_set_that_a_browser_named_is_sent(config: Config, folder: RunFolder) -> None:
    assert mirrored(folder, config).problem == ""
    run = client(config).get_run(run_id(folder))
    assert run.info.status == "FINISHED"
    names = {fit_name("eval/lfw (1)/auc"): 0.5, fit_name("eval/lfw [1]/auc"): 0.6}
    assert run.data.metrics == {"train/loss": 2.0, **names}
    assert run.data.params == {"a.b": "1", fit_name("own (x)"): "2"}
    assert mirrored(folder, config).problem == ""
    assert steps(folder, config) == [1, 2]
    assert steps(folder, config, fit_name("eval/lfw (1)/auc")) == [1]


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

    def made(*args: Any, **options: Any) -> None:
        make(*args, **options)
        unanswered()

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", made)
        assert "the answer was lost; `manyfaces sync" in mirrored(folder, config).problem
        patch.setattr(MlflowClient, "log_batch", unanswered)
        for _ in range(3):
            assert mirrored(folder, config).problem
    assert mirrored(folder, config).problem == ""
    there = client(config)
    experiment = there.get_experiment_by_name("manyfaces").experiment_id
    found = there.search_runs([experiment], f"tags.`{TAG}` != ''")
    assert [run.info.run_id for run in found] == [run_id(folder)]
    assert [run.info.run_name for run in attempts_of(folder, config)] == ["r attempt 1"]
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


@pytest.mark.parametrize("code", ["ENDPOINT_NOT_FOUND", "INVALID_PARAMETER_VALUE"])
def test_what_is_refused_at_each_period_has_nothing_sent_again(
    code: str, config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is how a server answers that is older than inputs; the second may tell of a run
    that was deleted, so that the run is looked for and found."""
    from mlflow import MlflowClient
    from mlflow.exceptions import RestException

    calls: list[str] = []

    def refused(*args: Any, **options: Any) -> None:
        calls.append("inputs")
        raise RestException({"error_code": code, "message": "no such thing"})

    def sent(self: Any, run_id: str, path: str, folder: str | None = None) -> None:
        calls.append(Path(path).name)

    send = Mirror._send
    monkeypatch.setattr(MlflowClient, "log_inputs", refused)
    monkeypatch.setattr(MlflowClient, "log_artifact", sent)
    monkeypatch.setattr(Mirror, "_send", lambda *given: calls.append("period") or send(*given))
    Record(folder.path).event("start", "again", **FACTS)
    mirror = Mirror(folder.path, config, {}, 0.05, lambda: calls.append("plots"))
    wait_until(lambda: calls.count("period") > 3)
    assert "no such thing; that is final: " in mirror.close("FINISHED", folder.artifacts)
    assert [calls.count(each) for each in ("config.yaml", "plots")] == [1, 1]
    assert (calls.count("inputs") == 1) == (code == "ENDPOINT_NOT_FOUND")
    assert client(config).get_run(run_id(folder)).info.status == "FINISHED"


def test_sync_sends_what_is_missing_and_says_how_the_run_ended(
    config: Config, folder: RunFolder
) -> None:
    told = sync(folder)
    assert f"run {run_id(folder)}, KILLED, in sqlite:" in told
    Record(folder.path).metrics(3, **{"train/loss": 3.0})
    for kind, status in (
        ("stopped", "FAILED"),
        ("start", "KILLED"),
        ("worker_failed", "FAILED"),
        ("start", "KILLED"),
        ("finished", "FINISHED"),
    ):
        Record(folder.path).event(kind, "so it was")
        assert last_status(folder.path) == status
    sync(folder)
    run = client(config).get_run(run_id(folder))
    assert run.info.status == "FINISHED"
    assert steps(folder, config) == [1, 2, 3]
    assert {file.path for file in client(config).list_artifacts(run.info.run_id)} == {"config.yaml"}
    sync(folder, "tracking.experiment=other")  # which changes nothing for a run that is there
    assert run_id(folder) == run.info.run_id


def of_pairs(name: str, accuracy: float) -> Result:
    return Result(name, (Quantity("accuracy", "accuracy"),), {"accuracy": accuracy})


def test_an_evaluation_of_any_step_comes_to_the_record_and_to_mlflow(
    config: Config, folder: RunFolder
) -> None:
    """Whether an earlier step is evaluated after a later one, or a later session sends it."""
    mirrored(folder, config)
    told = io.StringIO()
    for step, accuracy in ((2, 0.9), (1, 0.8), (1, 0.8)):
        save_report([of_pairs("pairs", accuracy)], report_folder(folder.path, step), step)
        record_evaluation(folder.path, Console(file=told))
    assert told.getvalue().splitlines() == ["MLflow      has it"] * 3
    history = client(config).get_metric_history(run_id(folder), "eval/pairs/accuracy")
    assert sorted((m.step, m.value) for m in history) == [(1, 0.8), (2, 0.9)]
    rows = [row for row in read_rows(folder.path / METRICS) if "pairs/accuracy" in row]
    assert [(row["step"], row["pairs/accuracy"]) for row in rows] == [(2, 0.9), (1, 0.8)]
    there = client(config).list_artifacts(run_id(folder), "evaluation/step-00000001")
    assert {Path(file.path).name for file in there} == {"evaluation.json", "results.json"}
    assert client(config).get_run(run_id(folder)).info.status == "KILLED"  # as the run stood
    save_report([of_pairs("lfw", 0.7)], report_folder(folder.path, 1), 1)
    (report_folder(folder.path, 2) / "results.json").write_text("{")
    sync_mlflow(folder.path, (), Console(file=told))
    assert steps(folder, config, "eval/lfw/accuracy") == [1]
    assert mirrored(folder, config).problem == ""
    assert sorted(steps(folder, config, "eval/pairs/accuracy")) == [1, 2]  # and nothing comes twice


def test_an_evaluation_of_a_run_that_is_written_is_sent_later(
    config: Config, folder: RunFolder, tmp_path: Path
) -> None:
    save_report([of_pairs("pairs", 0.9)], report_folder(folder.path, 2), 2)
    told = io.StringIO()
    lease = take_launch(folder.path)
    record_evaluation(folder.path, Console(file=told, width=500))
    lease.release()
    assert re.search(r"do not have this yet \(.*\); later `manyfaces sync-mlflow", told.getvalue())
    assert "pairs/accuracy" not in Record(folder.path).measured(2)
    record_evaluation(folder.path, Console(file=told))  # MLflow never knew this run
    assert "pairs/accuracy" in Record(folder.path).measured(2)
    assert mlflow_run(folder.path) is None
    record_evaluation(tmp_path / "none", Console(file=told))
    assert len(told.getvalue().splitlines()) == 1


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


def test_nothing_more_is_sent_of_a_run_that_is_taken_over_meanwhile(
    config: Config, folder: RunFolder
) -> None:
    mirror = Mirror(folder.path, config, {}, period_s=60, draw=lambda: mirror.abandon())
    assert mirror.close("FAILED", folder.artifacts) == ""
    assert artifacts(folder, config) == set()
    assert client(config).get_run(run_id(folder)).info.status == "RUNNING"


def test_the_experiment_is_one_of_model_training(
    config: Config, folder: RunFolder, tmp_path: Path
) -> None:
    """One that an earlier version has made becomes so, and what a person has chosen stays."""
    there = client(config)
    old = there.create_experiment("manyfaces", artifact_location=tmp_path.as_uri())
    mirrored(folder, config)
    assert there.get_experiment(old).tags[KIND] == TRAINING
    there.set_experiment_tag(old, KIND, "genai_development")
    mirrored(folder, config)
    assert there.get_experiment(old).tags[KIND] == "genai_development"
    other = config.tracking.model_copy(update={"experiment": "new"})
    (folder.path / RUN_FILE).unlink()
    mirrored(folder, config.model_copy(update={"tracking": other}))
    assert there.get_experiment_by_name("new").tags[KIND] == TRAINING
    known = json.loads((folder.path / RUN_FILE).read_text())
    command, page = opening_lines(folder.path, tracking_uri(config))
    assert command.endswith(f"mlflow ui --backend-store-uri {tracking_uri(config)}")
    assert page == (
        f"http://127.0.0.1:5000/#/experiments/{known['experiment_id']}/runs/{known['run_id']}"
        "?workflowType=machine_learning"
    )
    assert opening_lines(folder.path, "http://u:PLANTED@h:1/") == ["http://***@h:1"]


FACTS = {
    "world_size": 2,
    "step": 0,
    "nodes": ["a", "b"],
    "devices": {"NVIDIA H100": 2},
    "versions": {"torch": "2.13.0"},
    "origin": {
        "command": "manyfaces train x.yaml",
        "user": "ann",
        "host": "a",
        "source": "LOCAL",
        "commit": "c" * 40,
        "dirty": True,
    },
    "datasets": [
        {
            "path": "s3://u:PLANTED@bucket/faces",
            "fingerprint": "f" * 64,
            "images": 120,
            "identities": 20,
            "shards": 4,
            "bytes": 1000,
            "share": 1.0,
        }
    ],
}


def test_a_run_says_where_it_comes_from_and_what_it_reads(
    config: Config, folder: RunFolder
) -> None:
    Record(folder.path).event("start", "again", **FACTS)
    for _ in range(2):
        assert mirrored(folder, config).problem == ""
    run = client(config).get_run(run_id(folder))
    wanted = {
        "mlflow.user": "ann",
        "mlflow.source.name": "manyfaces train x.yaml",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "c" * 40,
        "mlflow.source.git.dirty": "true",
        "manyfaces.command": "manyfaces train x.yaml",
        "manyfaces.commit": "c" * 40,
        "manyfaces.dirty": "true",
        "manyfaces.host": "a",
        "manyfaces.nodes": "a, b",
        "manyfaces.devices": "2 x NVIDIA H100",
        "manyfaces.version.torch": "2.13.0",
        "manyfaces.world_size": "2",
        "manyfaces.restarts": "1",
    }
    assert {name: run.data.tags.get(name) for name in wanted} == wanted
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("faces", "f" * 36)
    assert (data.dataset.source_type, "PLANTED" in data.dataset.source) == ("s3", False)
    profile = json.loads(data.dataset.profile)
    assert (profile["num_rows"], profile["fingerprint"]) == (120, "f" * 64)


def test_each_attempt_is_a_run_below_with_its_own_end(config: Config, folder: RunFolder) -> None:
    record = Record(folder.path)
    time.sleep(0.002)  # MLflow, which is asked for them in order, knows milliseconds
    record.event("start", "resuming", world_size=2)
    record.event("worker_failed", "rank 1 died", rank=1)
    mirror = Mirror(folder.path, config, {}, period_s=0.05)
    time.sleep(0.002)
    record.event("start", "resuming", world_size=1)
    wait_until(
        lambda: [run.info.status for run in known_attempts(folder, config)][2:] == ["RUNNING"]
    )
    record.event("interrupted", "stopped by SIGTERM")
    mirror.close("KILLED")
    assert mirrored(folder, config).problem == ""  # and nothing comes twice
    found = attempts_of(folder, config)
    assert [run.info.status for run in found] == ["KILLED", "FAILED", "KILLED"]
    reasons = [run.data.tags["manyfaces.end"] for run in found]
    assert reasons[1:] == ["rank 1 died", "stopped by SIGTERM"]
    assert reasons[0].startswith("nothing was recorded of its end")
    rows = read_rows(folder.path / EVENTS)
    times = [(int(row["time"] * 1000)) for row in rows]
    assert [(r.info.start_time, r.info.end_time) for r in found] == [
        (times[0], times[0]),
        (times[1], times[2]),
        (times[3], times[4]),
    ]
    there = client(config)
    there.set_tag(found[2].info.run_id, "mlflow.note.content", "a person's words")
    there.delete_run(found[0].info.run_id)
    assert mirrored(folder, config).problem == ""
    notes = [r.data.tags["mlflow.note.content"] for r in attempts_of(folder, config)]
    assert notes == ["rank 1 died", "a person's words"]


def test_checkpoints_and_plots_come_while_the_run_goes_on(
    config: Config, folder: RunFolder
) -> None:
    record = Record(folder.path)
    made = folder.checkpoints / "step-00000002"
    made.mkdir(parents=True)
    drawn: list[int] = []

    def draw() -> None:
        drawn.append(1)
        folder.plots.mkdir(exist_ok=True)
        (folder.plots / "loss.png").write_bytes(b"png")

    mirror = Mirror(folder.path, config, {}, period_s=0.05, draw=draw)
    wait_until(lambda: "plots" in artifacts(folder, config))
    facts = {"step": 2, "path": str(made), "bytes": 7, "commit_sha256": "d" * 64}
    record.event("checkpoint", f"checkpoint {made}", **facts)
    wait_until(lambda: "checkpoints" in artifacts(folder, config))
    assert mirror.close("FINISHED") == ""
    there = client(config)
    local = there.download_artifacts(run_id(folder), "checkpoints/step-00000002.json")
    told = json.loads(Path(local).read_text())
    assert {key: told[key] for key in facts} == facts
    assert there.get_run(run_id(folder)).data.tags["manyfaces.checkpoint"] == str(made)
    assert drawn == [1]  # after the evaluation, and not again after the checkpoint


def test_plots_that_cannot_be_drawn_are_told_and_keep_nothing_back(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw() -> None:
        drawn.append(1)
        raise ValueError("no font")

    tags, answers = Server.tags, iter([unanswered])
    monkeypatch.setattr(Server, "tags", lambda *given: next(answers, tags)(*given))
    mirror = Mirror(folder.path, config, {}, period_s=0.05, draw=draw)
    wait_until(
        lambda: drawn != []
    )  # although the server was away between the numbers and the plots
    assert mirror.close("FINISHED", folder.artifacts) == ""
    assert mirror.notes == ["the plots were not drawn: no font"]
    assert artifacts(folder, config) == {"config.yaml"}
    assert drawn == [1]


def test_the_files_of_checkpoints_are_sent_where_that_is_asked_for(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come last and have their time: what is small, and how the run ended, is there before."""
    from mlflow import MlflowClient

    before: list[Any] = []
    send = MlflowClient.log_artifacts

    def sent(*given: Any) -> None:
        before.append((client(config).get_run(run_id(folder)).info.status, steps(folder, config)))
        send(*given)

    monkeypatch.setattr(MlflowClient, "log_artifacts", sent)
    monkeypatch.setattr("manyfaces.train.tracking.mirror.CLOSE_S", 0.0)
    made = folder.checkpoints / "step-00000002"
    made.mkdir(parents=True)
    (made / "state.json").write_text("{}")
    Record(folder.path).event("checkpoint", f"checkpoint {made}", step=2)  # of an earlier version
    tracking = config.tracking.model_copy(update={"checkpoint_files": True})
    assert mirrored(folder, config.model_copy(update={"tracking": tracking})).problem == ""
    found = client(config).list_artifacts(run_id(folder), "checkpoints/step-00000002")
    assert [file.path for file in found] == ["checkpoints/step-00000002/state.json"]
    assert before == [("FINISHED", [1, 2])]


def test_a_long_record_is_sent_part_by_part(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyfaces.train.tracking.tail.MOST_BYTES", 100)
    monkeypatch.setattr("manyfaces.train.tracking.server.BATCH", 2)
    with (folder.path / METRICS).open("a") as file:
        file.write("torn\n" * 100)
    for step in (3, 4):
        Record(folder.path).metrics(step, a=1.0, b=2.0, **{"train/loss": 3.0})
    assert mirrored(folder, config).problem == ""
    assert steps(folder, config) == [1, 2, 3, 4]
    assert steps(folder, config, "train/b") == [3, 4]


def test_the_use_of_each_node_is_sent_once(config: Config, folder: RunFolder) -> None:
    for node in ("a", "b"):
        path = folder.path / "system" / f"{node}.jsonl"
        path.parent.mkdir(exist_ok=True)
        for step in (10, 20):
            append_row(path, {"step": step, "time": 1.0, "cpu_utilization_percentage": 5.0})
    for _ in range(2):
        assert mirrored(folder, config).problem == ""
    for node in ("a", "b"):
        assert steps(folder, config, f"system/{node}/cpu_utilization_percentage") == [10, 20]


@pytest.mark.slow
def test_a_finished_run_registers_its_backbone_once(
    config: Config, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow

    encoder = made_encoder()
    (folder.checkpoints / "step-00000002").mkdir(parents=True)
    exports: list[Path] = []

    def export(checkpoint: Path, scratch: Path) -> ExportedModel:
        exports.append(checkpoint)
        write_exported(encoder, scratch / "model.safetensors", "r, step 2")
        return ExportedModel(scratch / "model.safetensors", 2, str(checkpoint), (32, 32), 16)

    monkeypatch.setattr("manyfaces.train.tracking.mirror.export_model", export)
    monkeypatch.setattr("manyfaces.train.tracking.mirror.newest_step", lambda folder: 2)
    tracking = config.tracking.model_copy(update={"register_as": "faces"})
    registers = config.model_copy(update={"tracking": tracking})
    assert Mirror(folder.path, registers, {}, period_s=60).close("FAILED") == ""
    assert exports == []
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "finalize_logged_model", unanswered)
        assert "the answer was lost" in mirrored(folder, registers).problem
    for _ in range(2):
        assert mirrored(folder, registers).problem == ""
    assert exports == [folder.checkpoints / "step-00000002"] * 2
    there = client(config)
    [version] = there.search_model_versions("name = 'faces'")
    assert version.run_id == run_id(folder)
    [output] = there.get_run(run_id(folder)).outputs.model_outputs
    assert output.step == 2
    [model] = there.search_logged_models([there.get_run(run_id(folder)).info.experiment_id])
    assert (str(model.status), model.source_run_id) == ("READY", run_id(folder))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(config))
    images_NHWC = np.zeros((2, 32, 32, 3), np.uint8)
    embeddings_ND = mlflow.pyfunc.load_model("models:/faces/1").predict(images_NHWC)
    np.testing.assert_allclose(embeddings_ND, EncoderModel(encoder).embed(list(images_NHWC)))
    saved = [path.name for path in Path(model.artifact_location.removeprefix("file://")).rglob("*")]
    assert "model.safetensors" in saved
    assert not [name for name in saved if name.endswith((".pkl", ".pth", ".pt", ".py"))]
