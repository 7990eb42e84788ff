"""Lists of pairs as people have them: read as what they mean, or refused with the line."""

from pathlib import Path

import pytest

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.pair_list import read_pair_list


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of two people, one of them in a PNG, and three without a folder."""
    folder = tmp_path / "images"
    for name in (
        "Ann/Ann_0001.jpg",
        "Ann/Ann_0004.jpg",
        "Bob_X/Bob_X_0002.png",
        "a b.jpg",
        "c.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"an image")
    return folder


def listed(root: Path, text: str, name: str = "pairs.txt") -> tuple[list[str], list[bool]]:
    (root.parent / name).write_text(text)
    pairs = read_pair_list(root.parent / name, root)
    return [str(path.relative_to(root)) for path in pairs.paths], pairs.same.tolist()


LFW = ["Ann/Ann_0001.jpg", "Ann/Ann_0004.jpg", "Ann/Ann_0004.jpg", "Bob_X/Bob_X_0002.png"]


@pytest.mark.parametrize(
    "text",
    [
        "1\t1\nAnn\t1\t4\nAnn\t4\tBob_X\t2\n",
        "1 1\r\nAnn 1 4\r\n\r\nAnn 4 Bob_X 2\r\n",
        "Ann\t1\t4\nAnn\t4\tBob_X\t2\n",  # RFW's, without a first line
        "1\nAnn 1 4\nAnn 4 Bob_X 2",
        "\ufeffname,imagenum1,imagenum2,\nAnn,1,4,\nAnn,4,Bob_X,2\n",
    ],
)
def test_lfws_list(root: Path, text: str) -> None:
    assert listed(root, text) == (LFW, [True, False])
    pairs = read_pair_list(root.parent / "pairs.txt", root)
    assert pairs.identities == ["Ann", "Ann", "Ann", "Bob_X"]


def test_images_without_a_folder_for_each_person(root: Path) -> None:
    (root.parent / "pairs.txt").write_text("Ann 1 4\n")
    found = read_pair_list(root.parent / "pairs.txt", root / "Ann")
    assert [path.name for path in found.paths] == ["Ann_0001.jpg", "Ann_0004.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        "a b.jpg\tc.jpg\t1\nc.jpg\ta b.jpg\t0\n",
        "path1,path2,label\na b.jpg,c.jpg,true\nc.jpg,a b.jpg,false\n",
        "a b.jpg\tc.jpg\t1\nc.jpg\ta b.jpg\t-1\n",
    ],
)
def test_paths_and_a_label(root: Path, text: str) -> None:
    expected = ["a b.jpg", "c.jpg", "c.jpg", "a b.jpg"]
    assert listed(root, text) == (expected, [True, False])
    assert read_pair_list(root.parent / "pairs.txt", root).identities is None


def test_paths_are_relative_to_the_list_or_absolute(root: Path) -> None:
    (root / "list.txt").write_text(f"c.jpg {root}/Ann/Ann_0001.jpg 0\n")
    found = read_pair_list(root / "list.txt")
    assert found.paths == [root / "c.jpg", root / "Ann/Ann_0001.jpg"]


def test_two_lines_a_pair_as_calfw_and_cplfw_have_them(root: Path) -> None:
    text = "Ann/Ann_0001.jpg 7\nAnn/Ann_0004.jpg 7\nc.jpg 0\nAnn/Ann_0001.jpg 0\n"
    paths, same = listed(root, text)
    assert paths == ["Ann/Ann_0001.jpg", "Ann/Ann_0004.jpg", "c.jpg", "Ann/Ann_0001.jpg"]
    assert same == [True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"pairs\.txt: no pairs in it; expected `name 1 4`"),
        ("10 300\n", r"pairs\.txt: no pairs in it; expected"),
        ("10 300\nAnn 1 4\n", r"pairs\.txt: 1 pairs, and its first line, 10 300, says 6,000; is the"),
        ("Ann 1 4\nAnn 1 5\n", r"pairs\.txt:2: .*/Ann/Ann_0005\.jpg \(or \.png\) is not there; give"),
        ("Ann 1 4\nAnn 1 Bob_X\n", r"pairs\.txt:2: 'Ann 1 Bob_X' is no pair; expected"),
        ("Ann 1 4\nAnn x Bob_X 2\n", r"pairs\.txt:2: 'Ann x Bob_X 2' is no pair; expected"),
        ("c.jpg c.jpg 2\n", r"pairs\.txt:1: the label of the pair is '2'; expected 1 for one"),
        ("c.jpg c.jpg 1\n\nc.jpg d.jpg 0\n", r"pairs\.txt:3: .*/d\.jpg is not there; give the folder"),
        ("c.jpg c.jpg 1\nc.jpg c.jpg\n", r"pairs\.txt:2: 'c\.jpg c\.jpg' is no pair"),
        ("c.jpg 1\nc.jpg 0\n", r"pairs\.txt:1: expected two lines `path label` with the same label"),
        ("c.jpg 1\nc.jpg 1\nc.jpg 0\n", r"pairs\.txt:3: the second image of the last pair is missing"),
        ("one two three four five\n", r"pairs\.txt:1: 'one two three four five' is no pair"),
    ],
)  # fmt: skip
def test_what_is_no_list_is_told_by_its_line(root: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        listed(root, text)


def test_files_that_cannot_be_read(root: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: No such file or directory; expected a list"):
        read_pair_list(root / "none.txt", root)
    (root / "bytes.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"bytes\.txt: not UTF-8 text \(byte 0\); expected a list"):
        read_pair_list(root / "bytes.txt", root)
    (root / "list.txt").write_text("c.jpg c.jpg 1\n")
    with pytest.raises(UserError, match=r"nowhere: no such folder; give the root of the images of"):
        read_pair_list(root / "list.txt", root / "nowhere")
