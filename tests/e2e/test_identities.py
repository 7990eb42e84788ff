"""Identities come and go: a run's checkpoint takes in new people, and the run of a larger dataset
goes on from it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import forked, recipe, rows
from safetensors.torch import load_file

from manyfaces.data.synthetic.dataset import synthesise
from manyfaces.train.__main__ import main


def head_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Of a head that lies in one file a tensor."""
    return {
        name: tensor
        for file in (checkpoint / "head").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def names_of(folder: Path) -> list[str]:
    return (folder / "identities.txt").read_text().splitlines()


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that is refused."""
    assert main([*map(str, words)]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


@pytest.mark.slow
def test_new_people_are_added_and_training_goes_on(
    dataset_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(
        tmp_path, dataset_path, cluster={"workers": 1, "launcher": "process"}, train={"epochs": 1}
    )
    done = forked("train", config)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "run"
    source = run / "checkpoints" / "step-00000008"
    assert (source / "identities.txt").read_bytes() == (
        dataset_path / "identities.txt"
    ).read_bytes()
    assert "identities.txt" in json.loads((source / "COMMIT.json").read_text())["files"]

    larger = tmp_path / "larger"  # the same people and four more
    synthesise(larger, 24, 6, seed=7, processes=2, shard_images=48)
    old, new = names_of(dataset_path), names_of(larger)
    assert new[:20] == old
    (tmp_path / "new.txt").write_text("\n".join(new[20:]))
    out = tmp_path / "edited" / "checkpoints" / source.name
    second = [
        "train",
        config,
        f"data.path={larger}",
        "run.name=second",
        "train.epochs=2",
        f"run.resume_from={out}",
    ]
    assert "its 20 identities cannot continue as 24; `manyfaces head remap`" in told(
        capsys, *second[:-1], f"run.resume_from={source}"
    )
    assert (
        main(
            [
                "head",
                "add",
                str(run),
                str(out),
                "--names",
                str(tmp_path / "new.txt"),
                "--dataset",
                str(larger),
            ]
        )
        == 0
    )
    assert (
        "20 kept, 4 added, 24 images, 0 undecodable, 0 without an image" in capsys.readouterr().out
    )
    before, added = head_of(source), head_of(out)
    assert before.keys() == added.keys() == {"rows", "momentum"}
    assert all(torch.equal(added[name][:20], before[name]) for name in before)
    assert not added["momentum"][20:].any()
    length = before["rows"].norm(dim=1).median()
    assert torch.allclose(added["rows"][20:].norm(dim=1), length, rtol=0.1)
    assert (
        main(["head", "remap", str(run), str(tmp_path / "remapped"), "--dataset", str(larger)]) == 0
    )
    assert "20 kept, 4 added, 0 dropped" in capsys.readouterr().out
    assert all(
        torch.equal(tensor, added[name]) for name, tensor in head_of(tmp_path / "remapped").items()
    )

    other_order = Path(shutil.copytree(larger, tmp_path / "other-order"))
    (other_order / "identities.txt").write_text("".join(name + "\n" for name in reversed(new)))
    line = told(capsys, *second, f"data.path={other_order}")
    assert "its classes are other people" in line
    assert "manyfaces head remap" in line
    for changes, message in (
        (["head.rows.momentum=0"], "its head.rows.momentum above 0 cannot continue as 0"),
        (["head.sub_centers=2"], "its head.sub_centers 1 cannot continue as 2"),
        (
            ["train.optimizer.momentum=0"],
            "its train.optimizer.momentum above 0 cannot continue as 0",
        ),
        (
            ["objective=triplet", "data.order=pk"],
            "its objective head cannot continue as no state",
        ),
    ):
        assert message in told(capsys, *second, *changes)
    assert (
        main(["head", "remap", str(out), str(tmp_path / "there"), "--dataset", str(other_order)])
        == 0
    )
    assert torch.equal(head_of(tmp_path / "there")["rows"], added["rows"].flip(0))
    assert (
        main(
            [
                "head",
                "remap",
                str(tmp_path / "there"),
                str(tmp_path / "back"),
                "--dataset",
                str(dataset_path),
            ]
        )
        == 0
    )
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in head_of(tmp_path / "back").items()
    )
    assert "is there already" in told(
        capsys, "head", "remove", out, tmp_path / "back", "--identity", old[3]
    )

    done = forked(*second)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resuming {source.name} at sample 128" in done.stdout
    losses = [
        (row["step"], row["train/loss"])
        for row in rows(tmp_path / "runs" / "second" / "metrics.jsonl")
        if "train/loss" in row
    ]
    assert [step for step, _ in losses] == list(range(9, 19))
    last = tmp_path / "runs" / "second" / "checkpoints" / "step-00000018"
    assert names_of(last) == new
    assert json.loads((last / "state.json").read_text())["num_classes"] == 24
