"""What a killed edit of a head leaves is swept by the next one; the folder of one that lives is
not."""

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_head import made_head, write_checkpoint

from manyfaces.data.dataset.names import Names
from manyfaces.train.checkpoint.edit_lock import is_being_written, sweep_edits, unfinished_folder
from manyfaces.train.checkpoint.layout import sweep
from manyfaces.train.curation.head_edit import remove

EDIT = """
import sys
from pathlib import Path
from manyfaces.train.checkpoint.edit_lock import unfinished_folder
with unfinished_folder(Path(sys.argv[1])) as folder:
    (folder / "backbone.safetensors").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def edit(out: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that is in the middle of writing `out`, and the folder that it writes to."""
    process = subprocess.Popen(
        [sys.executable, "-c", EDIT, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["step-00000500", "an edited [head]"])
def test_the_next_edit_sweeps_what_a_killed_one_left(tmp_path: Path, name: str) -> None:
    here = write_checkpoint(tmp_path / "run" / "step-00000007", ["anna", "bob"], made_head(2, 1))
    folder = tmp_path / "edited" / "checkpoints"
    folder.mkdir(parents=True)
    others = folder / "notes.tmp-12345678"
    others.mkdir()
    with edit(folder / name) as (process, unfinished):
        sweep_edits(folder)
        sweep(folder)
        remove(here, folder / "second", Names.parse(b"bob"))
        assert is_being_written(unfinished)
        assert (unfinished / "backbone.safetensors").stat().st_size == 1000
        process.kill()
        process.wait(10)
        assert unfinished.is_dir()
        assert not is_being_written(unfinished)
        remove(here, folder / "third", Names.parse(b"bob"))
    assert {path.name for path in folder.iterdir()} == {"second", "third", others.name}


def test_an_edit_that_ends_leaves_nothing_but_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with unfinished_folder(out) as folder:
        folder.rename(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OSError, match="disk"), unfinished_folder(tmp_path / "other"):
        raise OSError("disk")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_nothing_can_be_locked_nothing_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with unfinished_folder(tmp_path / "step-00000500") as folder:
        sweep(tmp_path)
        assert folder.is_dir()
