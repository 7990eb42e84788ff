"""The main job on a local Ray: killed and typed again it ends bit for bit where the run that was
never stopped ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_tensors import differing, tensors
from commands import TIMEOUT_S, forked, kill_tree, manyfaces, recipe, rows, started, wait_until

from manyfaces.data.sources.verification_bin import read_bin, write_bin
from manyfaces.train.checkpoint.state import read_state

STEPS = 30


def losses(run: Path) -> list[tuple[int, float]]:
    return [
        (row["step"], row["train/loss"])
        for row in rows(run / "metrics.jsonl")
        if "train/loss" in row
    ]


def last(run: Path) -> Path:
    return run / "checkpoints" / f"step-{STEPS:08d}"


@pytest.fixture(scope="module")
def twin(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe whose run, two Ray workers under ZeRO-1, was never stopped."""
    folder = tmp_path_factory.mktemp("twin")
    head = {
        "margin": {"kind": "adaface", "m": 0.2},
        "sub_centers": 2,
    }  # whose running numbers and second rows go on too
    config = recipe(
        folder, dataset_path, evaluation={"pairs": [str(_pairs(folder, dataset_path))]}, head=head
    )
    done = manyfaces("train", config, "run.name=never-stopped")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished at step 30" in done.stdout
    assert "accuracy (10-fold)" in done.stdout
    assert "mlflow" not in done.stderr  # which tells of the tables of its new database
    return folder


def _pairs(folder: Path, dataset_path: Path) -> Path:
    made = forked("data", "pairs", dataset_path, folder / "pairs.bin", "--count", "40")
    assert made.returncode == 0, made.stderr
    return folder / "pairs.bin"


@pytest.mark.filterwarnings("ignore")  # MLflow's store warns of its own database layer
def test_kill_9_of_the_whole_tree_and_the_same_command_again(twin: Path) -> None:
    run = twin / "runs" / "killed"
    with started("train", twin / "recipe.yaml", "run.name=killed") as process:
        wait_until(lambda: len(losses(run)) >= 12, process)
        kill_tree(process)
    killed_at = losses(run)[-1][0]
    assert 12 <= killed_at < STEPS
    first_mlflow = (run / "mlflow.json").read_text()
    again = manyfaces("train", twin / "recipe.yaml", "run.name=killed")
    assert again.returncode == 0, again.stdout + again.stderr
    resumed = [row for row in rows(run / "events.jsonl") if row["kind"] == "start"][-1]
    assert 5 <= resumed["step"] <= killed_at
    assert f"resuming step-{resumed['step']:08d}" in again.stdout

    never_stopped = twin / "runs" / "never-stopped"
    assert {name.rpartition(":")[2] for name in tensors(last(run))} >= {
        "rows",
        "momentum.1",
        "features.running_mean",
        "step",
    }
    assert not differing(last(run), last(never_stopped))
    assert losses(run) == losses(never_stopped)
    numbers = [read_state(last(each))["numbers"]["head"] for each in (never_stopped, run)]
    assert numbers[0] == numbers[1]
    assert numbers[0]["norm_std"] != 100

    from mlflow import MlflowClient

    assert (run / "mlflow.json").read_text() == first_mlflow
    known = json.loads(first_mlflow)
    client = MlflowClient(known["uri"])
    assert client.get_run(known["run_id"]).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(known["run_id"], "train/loss")] == list(
        range(1, STEPS + 1)
    )
    assert {a.path for a in client.list_artifacts(known["run_id"])} >= {
        "config.yaml",
        "plan.txt",
        "evaluation.json",
        "plots",
        "report.html",
    }


def test_a_finished_run_says_so(twin: Path) -> None:
    again = forked("train", twin / "recipe.yaml", "run.name=never-stopped")
    assert again.returncode == 0
    assert "already complete at step 30" in again.stdout


def test_the_images_of_an_evaluation_are_looked_at_where_they_will_be_needed(twin: Path) -> None:
    pairs = read_bin(twin / "pairs.bin")
    blobs = [bytes(blob) for blob in pairs.blobs]
    write_bin(twin / "torn.bin", [blobs[0][:100], *blobs[1:]], pairs.same.tolist())
    words = ["train", twin / "recipe.yaml", f"evaluation.pairs=[{twin / 'torn.bin'}]"]
    again = forked(*words, "run.name=never-stopped")
    assert again.returncode == 0, again.stderr
    assert "already complete at step 30" in again.stdout
    refused = forked(*words, "run.name=never-started")
    assert refused.returncode == 2
    assert "torn.bin: image 0 is not a whole, decodable JPEG" in refused.stderr
    assert not (twin / "runs" / "never-started").exists()


def test_another_experiment_under_the_same_name_is_refused(twin: Path) -> None:
    words = [
        "run.name=never-stopped",
        "train.optimizer.lr=0.01",
        "head.margin.m=0.3",
        "run.seed=1",
        "checkpoint.every_steps=7",
    ]
    refused = forked("train", twin / "recipe.yaml", *words)
    assert refused.returncode == 2
    for key in ("train.optimizer.lr: 0.05 there, 0.01 here", "head.margin.m", "run.seed"):
        assert key in refused.stderr
    assert "every_steps" not in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("options", [["--pairs", "pairs.bin"], []])
def test_evaluate_a_finished_run(
    twin: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(twin)
    report = forked("evaluate", twin / "runs" / "never-stopped", *options)
    assert report.returncode == 0, report.stderr
    run = twin / "runs" / "never-stopped"
    step = run / "evaluation" / "step-00000030"
    ours = json.loads((step / "evaluation.json").read_text())["sets"]["pairs"]
    theirs = json.loads((run / "evaluation.json").read_text())["sets"]["pairs"]
    assert ours["auc"] == pytest.approx(theirs["auc"], abs=1e-3)
    plots = {"roc-pairs.png", "roc-pairs.svg", "scores-pairs.png", "scores-pairs.svg"}
    assert {p.name for p in step.iterdir() if p.suffix in (".png", ".svg")} == plots
    assert plots < {p.name for p in (run / "plots").iterdir()}


def test_a_finished_run_has_its_page_and_a_map_of_embeddings_on_request(
    twin: Path, tmp_path: Path
) -> None:
    run, out = twin / "runs" / "never-stopped", tmp_path / "page.html"
    assert "Map of embeddings" not in (run / "report.html").read_text()
    report = forked("report", run, "--embeddings", "5", "--out", out)
    assert report.returncode == 0, report.stderr
    assert f"report      {out}" in report.stdout
    page = out.read_text()
    assert "Map of embeddings" in page
    assert "of 5 identities of the training set" in page
    assert "Hardest genuine pairs" in page


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_torchrun_resumes_what_ray_began_at_another_world_size(twin: Path, stage: int) -> None:
    """The same worker function, one process then three, at another ZeRO stage: the samples go on
    exactly, the samples' order does not know the ranks."""
    words = [
        f"run.name=torchrun-{stage}",
        "train.batch_size=15",
        "cluster.workers=1",
        "cluster.launcher=process",
    ]
    words += [
        "head.sample_rate=0.5",
        "head.logits=store16",
        "head.rows.optimizer=rowwise",
        "head.rows.dtype=float16",
    ]  # the small state
    words += [
        "head.margin={kind: curricularface, m: 0.2}",
        "head.sub_centers=1",
        "head.placement=host",
    ]
    run = twin / "runs" / f"torchrun-{stage}"
    with started("train", twin / "recipe.yaml", *words) as process:
        wait_until(
            lambda: (run / "checkpoints" / "step-00000005" / "COMMIT.json").exists(), process
        )
        kill_tree(process)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=3",
        "--master-port=0",
        "--rdzv-backend=c10d",
    ]
    command += [
        "--rdzv-endpoint=localhost:0",
        "-m",
        "manyfaces.train",
        "train",
        str(twin / "recipe.yaml"),
        *words,
        f"engine.zero_stage={stage}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 workers on cpu: resuming step-000000" in done.stdout
    assert [step for step, _ in losses(run)] == list(range(1, 33))
