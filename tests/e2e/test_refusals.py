"""A person's mistake is one clear line and exit code 2, before anything is trained or lost."""

import shutil
from pathlib import Path

import pytest
from commands import forked, recipe, rows

from manyfaces.cluster.connection import START_TRIES
from manyfaces.train.__main__ import main


@pytest.fixture
def config(dataset_path: Path, tmp_path: Path) -> Path:
    return recipe(tmp_path, dataset_path, cluster={"launcher": "process", "workers": 1})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.batchsize=3"], "unknown key; did you mean batch_size"),
        (["data.path=nowhere"], "nowhere: no such folder"),
        (["evaluation.pairs=[nowhere.bin]"], "nowhere.bin: No such file"),
        (
            ["cluster.launcher=ray", "cluster.workers=64", "train.batch_size=64"],
            "64 workers of 1 threads need 64 CPUs",
        ),
        (["train.batch_size=500"], "500 is more than the dataset's 120 images"),
        (["data.expect_images=5"], "data.expect_images is 5"),
        (["run.resume_from=nowhere"], "no checkpoint there"),
        (["model.init=nowhere"], "nowhere: no such file or folder; give a run, a checkpoint,"),
        (["model.init=recipe.yaml"], "recipe.yaml: expected a file that ends in .safetensors,"),
        (["run.name=../up"], "run.name"),
    ],
)
def test_one_line(
    config: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(config), *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_local_ray_that_does_not_start(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def too_slow(**_: object) -> None:
        tries.append("ray.init")
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr("ray.init", too_slow)
    assert main(["train", str(config), "cluster.launcher=ray"]) == 2
    told = capsys.readouterr().err
    assert "no local Ray could be started: The current node timed out during startup." in told
    assert len(tries) == START_TRIES  # Ray itself waits for 30 s, on a busy machine too few
    assert len(told.strip().splitlines()) == 1


def test_a_loss_that_is_not_finite_stops_with_step_samples_and_checkpoint(
    config: Path, tmp_path: Path
) -> None:
    refused = forked(
        "train",
        config,
        "train.optimizer.lr=1e30",
        "train.warmup_epochs=0",
        "checkpoint.every_steps=1",
    )
    assert refused.returncode == 2
    for part in (
        "not finite",
        "at samples",
        "shard-",
        "the last good checkpoint is",
        "events.jsonl",
    ):
        assert part in refused.stderr, refused.stderr
    run = tmp_path / "runs" / "run"
    (stopped,) = [row for row in rows(run / "events.jsonl") if row["kind"] == "not_finite"]
    assert len(stopped["samples"]) == 16
    committed = sorted(
        p.name for p in (run / "checkpoints").glob("step-*") if (p / "COMMIT.json").exists()
    )
    assert all(int(name[5:13]) < stopped["step"] for name in committed)


def test_a_shorter_shard_is_found_before_step_0(
    config: Path, dataset_path: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(dataset_path, tmp_path / "copy"))
    shard = copy / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1024])
    refused = forked("train", config, f"data.path={copy}")
    assert refused.returncode == 2
    assert "shard-000001.tar" in refused.stderr
    assert not (tmp_path / "runs" / "run").exists()
