"""The file of the batches that a run leaves out: a line that cannot be read is told, not passed
over, as the run would be another one without it."""

from pathlib import Path

import pytest

from manyfaces.configs.errors import UserError
from manyfaces.train.left_out import LeftOut, read_left_out

BATCH = LeftOut(position=8, step=3, reason="loss nan", samples=[5, 6, 7, 4], names=list("abcd"))


def test_a_run_without_the_file_leaves_out_none(tmp_path: Path) -> None:
    assert read_left_out(tmp_path / "left_out.jsonl") == []


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "left_out.jsonl"
    file.write_text(f"{BATCH.model_dump_json()}\n" * 2)
    assert read_left_out(file) == [BATCH, BATCH]
    assert str(BATCH) == "step 3 (loss nan at samples 8 to 11)"


@pytest.mark.parametrize("line", ["{", "{}", '{"position": -1}', "\xff", "[]"])
def test_a_line_that_is_no_batch_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "left_out.jsonl"
    file.write_bytes(f"{BATCH.model_dump_json()}\n".encode() + line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=r"left_out\.jsonl:2: .*; restore the file, or remove it"):
        read_left_out(file)
