"""`manyfaces checkpoint show` and `verify` tell what is whole, what is damaged and what was never
committed."""

from pathlib import Path

import pytest
from made_head import made_head, write_checkpoint

from manyfaces.train.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (7, 9):
        path = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        write_checkpoint(path, ["anna", "bob", "carl"], made_head(3, 1))
    (tmp_path / "run" / "checkpoints" / "step-00000011.tmp-1a2b").mkdir()
    return tmp_path / "run"


def test_whole_checkpoints_are_verified(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(run)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "step-00000011.tmp-1a2b: not committed"
    assert [line.partition(",")[0] for line in told[1:]] == [
        "step-00000009: intact",
        "step-00000007: intact",
    ]


def test_a_flipped_byte_is_named_and_ends_with_code_2(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("backbone.safetensors", "identities.txt"):
        file = run / "checkpoints" / "step-00000009" / name
        body = bytearray(file.read_bytes())
        body[-1] ^= 1
        file.write_bytes(body)
    assert main(["checkpoint", "verify", str(run)]) == 2
    told = capsys.readouterr()
    assert "step-00000009: backbone.safetensors: digest differs" in told.out
    assert "step-00000009: identities.txt: digest differs" in told.out
    assert "step-00000007: intact" in told.out
    assert told.err.startswith(f"error: {run}: damaged: step-00000009;")


def test_a_run_and_one_checkpoint_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-00000007" / "identities.txt").unlink()
    assert main(["checkpoint", "show", str(run)]) == 0
    table = capsys.readouterr().out
    assert "sizes as committed" in table
    assert "identities.txt: missing" in table
    assert main(["checkpoint", "show", str(run / "checkpoints" / "step-00000009")]) == 0
    facts = capsys.readouterr().out
    assert "step-00000007" not in facts
    assert all(word in facts for word in ("backbone.safetensors", "head/", "mobilefacenet"))


def test_a_folder_without_checkpoints_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "show", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no checkpoint there; expected")
