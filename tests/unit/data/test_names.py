"""Names of class ids: the file's lines, a mixture's, and looking them up."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_head import named_dataset

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import join
from manyfaces.data.dataset.manifest import IDENTITIES
from manyfaces.data.dataset.names import Names, name_lines, names_sha256, write_names

words = st.lists(st.text("abä ß\t-/", min_size=1, max_size=4), min_size=1, max_size=30)


@given(words, words)
def test_finding_is_what_a_list_finds(mine: list[str], wanted: list[str]) -> None:
    names, others = (Names.parse("\n".join(lines).encode()) for lines in (mine, wanted))
    assert names.find(others).tolist() == [
        mine.index(word) if word in mine else -1 for word in wanted
    ]
    assert [names[number] for number in range(len(names))] == mine
    assert (names.twice() is None) == (len(set(mine)) == len(mine))
    some = np.array([0, len(mine) - 1, 0])
    assert names.take(some).body().decode() == "".join(mine[i] + "\n" for i in some)
    assert (names + others).body().decode() == "".join(word + "\n" for word in mine + wanted)


def test_a_file_from_windows_and_one_without_its_last_line_feed() -> None:
    assert Names.parse(b"a\r\nb").body() == Names.parse(b"a\nb\n").body() == b"a\nb\n"
    assert len(Names.parse(b"")) == 0
    assert Names.numbers(12).body() == "".join(f"{n}\n" for n in range(12)).encode()


def test_the_nearest_names_have_one_slip() -> None:
    names = Names.parse(
        "\n".join(f"person-{n:04d}" for n in range(0, 9999, 7)).encode() + b"\nmarie curie\n"
    )
    for slip in ("marie curei", "mrie curie", "marie  curie", "Marie curie"):
        assert names.nearest(slip)[0] == "marie curie"
    assert names.nearest("zzzzzzzzzzzz") == []


def test_a_mixture_tells_its_parts_apart(tmp_path) -> None:
    near = named_dataset(tmp_path / "x" / "train", ["anna", "bob"])
    far = named_dataset(tmp_path / "y" / "train", ["anna", "carl", "dora"])
    numbered = named_dataset(tmp_path / "z", 2)
    thirds = [Fraction(1, 3)] * 3
    lines = [line.decode() for line in name_lines(join([near, far, numbered], thirds))]
    expected = [
        "x/train/anna",
        "x/train/bob",
        "y/train/anna",
        "y/train/carl",
        "y/train/dora",
        f"{tmp_path.name}/z/0",
        f"{tmp_path.name}/z/1",
    ]
    assert lines == [name + "\n" for name in expected]


def test_written_as_they_are_or_not_at_all(tmp_path) -> None:
    dataset, nameless = (
        named_dataset(tmp_path / "a", ["anna", "böb"]),
        named_dataset(tmp_path / "b", 3),
    )
    to = tmp_path / "copy"
    write_names(dataset, to)
    assert (
        to.read_bytes() == (dataset.part.path / IDENTITIES).read_bytes() == "anna\nböb\n".encode()
    )
    assert names_sha256(dataset) is not None
    write_names(nameless, to)
    assert not to.exists()
    assert names_sha256(nameless) is None
    (dataset.part.path / IDENTITIES).write_text("anna\n")
    with pytest.raises(UserError, match="1 names of 2 identities; restore it, or remove it"):
        write_names(dataset, to)
