"""The class centres that `manyfaces checkpoint export` writes are the rows that torch's own reader
finds in the checkpoint, in the order of the names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_head import made_head, read_head, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from manyfaces.train.cli.main import main
from manyfaces.train.evaluation import centres

NAMES = ["anna", "bob", "carl", "dora", "emil"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    head = made_head(len(NAMES), 1)
    for name in ("rows", "rows.1"):
        head[name][3] = 0  # a class that was forgotten
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000007", NAMES, head, cut=2)


def stored(here: Path) -> Tensor:
    head = read_head(here, made_head(len(NAMES), 1))
    return torch.stack([head["rows"].float(), head["rows.1"].float()], 1)


def read(file: Path) -> Tensor:
    if file.suffix == ".npy":
        return torch.from_numpy(np.load(file, mmap_mode="r").copy())
    return load_file(file)["weight"]


@pytest.mark.parametrize("ending", centres.ENDINGS)
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("part_bytes", [1, 60, 1 << 20])
def test_the_file_holds_the_rows_in_their_order(
    here: Path, tmp_path: Path, ending: str, unit: bool, part_bytes: int, monkeypatch
) -> None:
    monkeypatch.setattr(centres, "_PART_BYTES", part_bytes)
    file = tmp_path / f"out{ending}"
    told: list[tuple[int, int]] = []
    shape = centres.write_centres(here, file, unit=unit, count=lambda *both: told.append(both))
    expected = stored(here)
    if unit:
        expected = expected / expected.norm(dim=2, keepdim=True).clamp_min(1e-12)
    assert read(file).shape == shape == (5, 2, 3)
    torch.testing.assert_close(read(file), expected, rtol=1e-6, atol=0)
    assert told[-1] == (5, 5)
    assert (tmp_path / "out.identities.txt").read_text().split() == NAMES
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        "out.identities.txt",
        f"out{ending}",
    ]


def test_one_centre_a_class_is_a_matrix(tmp_path: Path) -> None:
    head = {"rows": made_head(4, 2)["rows"]}
    here = write_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000007", None, head)
    assert centres.write_centres(here, tmp_path / "out.npy", unit=False) == (4, 3)
    assert np.array_equal(np.load(tmp_path / "out.npy"), head["rows"].float().numpy())
    assert not (tmp_path / "out.identities.txt").exists()


def test_the_command_line_refuses_what_it_would_overwrite(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "out.npy"
    assert main(["checkpoint", "export", run, str(out)]) == 0
    told = capsys.readouterr().out
    assert f"centres     {out}, float32 [5, 2, 3]" in told
    assert f"names       {tmp_path / 'out.identities.txt'}" in told
    for words, line in (
        ([out], f"{out}: exists; give another name"),
        ([tmp_path / "out.safetensors"], "out.identities.txt: exists; give another name"),
        ([tmp_path / "new.pth"], "new.pth: expected a name that ends in .safetensors or .npy"),
        ([tmp_path / "none" / "new.npy"], f"{tmp_path / 'none'}: no such folder; make it first"),
        ([tmp_path / "new.npy", "--backbone", tmp_path / "b.onnx"], "b.onnx: expected a name that"),
    ):
        assert main(["checkpoint", "export", run, *map(str, words)]) == 2
        assert line in capsys.readouterr().err
    assert not list(tmp_path.glob("new*"))
    assert not list(tmp_path.glob(".*"))


def test_a_run_without_centres_and_a_full_disk_are_one_line(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(centres.os, "fsync", full)
        assert main(["checkpoint", "export", str(here), str(tmp_path / "out.npy")]) == 2
        assert "out.npy: cannot be written ([Errno 28] No space" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))
    config = {"model": {"kind": "mobilefacenet"}, "objective": {"kind": "triplet"}}
    config["data"] = {"order": {"kind": "pk"}}
    none = write_checkpoint(
        tmp_path / "other" / "checkpoints" / "step-00000007", NAMES, made_head(5, 1), config=config
    )
    assert json.loads((none / "state.json").read_text())["config"] == config
    assert main(["checkpoint", "export", str(none), str(tmp_path / "out.npy")]) == 2
    assert "its objective triplet has no class centres" in capsys.readouterr().err
