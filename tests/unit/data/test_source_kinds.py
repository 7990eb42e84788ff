"""A kind of source is one class: it is found, described, given its options and converted without a
line elsewhere."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.convert import convert
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.sources.recognise import recognise, source_options
from manyfaces.data.sources.source import (
    Claim,
    FileAt,
    Option,
    Source,
    files_with_suffix,
    recognised,
    source_kinds,
)
from manyfaces.data.synthetic.faces import encode


class Album(Source):
    """A text file `*.album` of identity names; the images of each are `<name>-<number>.jpg`."""

    kind, described = "album", "an .album of names"
    options = (Option("images_each", int, "images of each name in an album", "COUNT"),)

    @classmethod
    def claims(cls, path: Path) -> list[Claim]:
        return [Claim([file]) for file in files_with_suffix(path, ".album")]

    def __init__(self, path: Path, files: Sequence[Path], images_each: int = 1) -> None:
        self.path, self.folder, self.images_each = path, files[0].parent, images_each
        self.digest = files[0].read_text()
        self.identities = self.digest.split()
        self.label_N = np.repeat(np.arange(len(self.identities), dtype=np.int32), images_each)

    def place(self, row: int) -> FileAt:
        return FileAt(str(self.folder / self.name(row)))

    def name(self, row: int) -> str:
        identity, number = divmod(row, self.images_each)
        return f"{self.identities[identity]}-{number}.jpg"


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "people"
    folder.mkdir()
    for number, name in enumerate(("ann", "bob")):
        for image in range(3):
            (folder / f"{name}-{image}.jpg").write_bytes(encode(1, number, image))
    (folder / "friends.album").write_text("ann\nbob\n")
    return folder


def test_a_source_that_is_defined_elsewhere_is_converted(album: Path, tmp_path: Path) -> None:
    for number, path in enumerate((album, album / "friends.album")):
        out = tmp_path / f"out{number}"
        manifest = convert([path], out, processes=1, options={"images_each": 3, "root": None})
        assert (manifest.num_images, manifest.num_identities) == (6, 2)
        assert sorted((out / "identities.txt").read_text().split()) == ["ann", "bob"]
    assert convert([album], tmp_path / "default", processes=1).num_images == 2
    assert open_part(tmp_path / "default").manifest.image_px == (112, 112)


def test_it_is_listed_in_messages_and_options(album: Path) -> None:
    assert Album in source_kinds()
    with pytest.raises(UserError, match=r"no such file or folder; recognised: .* an .album of "):
        recognise(album / "nowhere")
    assert [option.name for option in source_options()] == [
        "root",
        "images_each",
        "split",
        "image_column",
        "label_column",
    ]


def test_its_claim_stands_beside_those_of_other_kinds(album: Path) -> None:
    (album / "more.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"several sources \(more.zip, friends.album\); name one"):
        recognise(album)
    (album / "more.zip").unlink()
    (album / "others.album").write_text("ann")
    with pytest.raises(UserError, match=r"several sources \(friends.album, others.album\)"):
        recognise(album)


def test_an_option_that_no_kind_takes(album: Path) -> None:
    with pytest.raises(UserError, match=r"no source takes the option 'rot'; the options are root,"):
        recognise(album, {"rot": "x"})


def test_two_kinds_may_share_an_option_only_in_one_meaning() -> None:
    class Other(Album):
        kind = "other"
        options = (Option("images_each", str, "something else"),)

        @classmethod
        def claims(cls, path: Path) -> list[Claim]:
            return []

    with pytest.raises(AssertionError, match="has the option images_each with another meaning"):
        source_options()
    Other.options = Album.options  # a class stays among the kinds while anything refers to it
    assert "images_each" in [option.name for option in source_options()]


def test_a_folder_that_may_be_a_general_kind_only_is_taken_for_it(tmp_path: Path) -> None:
    """Images deeper than the first folders are no certain sign of identity folders, but no other
    kind claims the path."""
    (tmp_path / "ann" / "2020").mkdir(parents=True)
    (tmp_path / "ann" / "2020" / "1.jpg").write_bytes(b"one")
    source = recognise(tmp_path)
    assert (source.kind, source.identities) == ("folder", ["ann"])


def test_every_kind_describes_itself() -> None:
    kinds = [kind for kind in source_kinds() if kind.__module__.startswith("manyfaces.")]
    assert [kind.kind for kind in kinds] == ["rec", "zip", "parquet", "list", "folder"]
    for kind in kinds:
        assert kind.__doc__
        assert kind.described in recognised()


READ = """
import sys
from manyfaces.data.sources.recognise import source_options
assert len(source_options()) == 4
heavy = {"webdataset", "torch", "cv2", "nvidia", "manyfaces.data.dataset.write"}
print(sorted(heavy & set(sys.modules)))
"""


def test_reading_sources_imports_no_writer() -> None:
    run = subprocess.run(
        [sys.executable, "-c", READ], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "[]"
