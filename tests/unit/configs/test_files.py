"""Files that are whole or not there, and names that name nothing outside their folder."""

import os
from pathlib import Path

import pytest

from manyfaces.configs.files import relative_name, write_atomic


@pytest.mark.parametrize("name", ["a", "head/a.safetensors", "..a", "a b", ".hidden"])
def test_a_name_within_the_folder_is_taken(name: str) -> None:
    assert relative_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/a", "//a", "../a", "a/../../b", "a/..", "./a", "a//b", "a/", "a\0b", "..\\a"],
)
def test_any_other_is_not(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a file in this folder"):
        relative_name(name)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
