"""IJB's lists: read as they are shipped, and refused by file and line where they do not fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_ijb import MadeIJB, write_ijb

from manyfaces.configs.errors import UserError
from manyfaces.data.sources.delimited import line_of, read_delimited
from manyfaces.data.sources.ijb import IJBFiles


@pytest.fixture
def made(tmp_path: Path) -> MadeIJB:
    return write_ijb(tmp_path / "IJBC", subjects=2)


def read_all(root: Path) -> None:
    files = IJBFiles(root, "IJBC")
    templates = files.templates(files.faces())
    files.pairs(templates)
    files.galleries(templates)
    files.probes(templates)


def test_the_lists_are_read_as_they_were_written(made: MadeIJB) -> None:
    files = IJBFiles(made.root, "IJBC")
    faces = files.faces()
    assert faces.names.to_pylist() == made.names
    assert faces.detector_N.tolist() == np.float32(made.scores).tolist()
    assert faces.path(3) == made.root / "loose_crop" / made.names[3]
    first = (made.root / "meta/ijbc_name_5pts_score.txt").read_text().split()[1:11]
    assert faces.points_N52[0].ravel().tolist() == np.float32([float(n) for n in first]).tolist()
    templates = files.templates(faces)
    read = zip(templates.image_M, templates.template_M, templates.media_M, strict=True)
    assert [(made.names[i], templates.ids_K[t], m) for i, t, m in read] == made.memberships
    pairs, ids_K = files.pairs(templates), templates.ids_K
    told = zip(ids_K[pairs.first_P], ids_K[pairs.second_P], pairs.same_P, strict=True)
    assert list(told) == made.pairs
    galleries, probes = files.galleries(templates), files.probes(templates)
    assert list(galleries) == ["G1", "G2"]
    for enrolled, rows in zip(
        (*galleries.values(), probes), (*made.galleries.values(), made.probes), strict=True
    ):
        read = zip(ids_K[enrolled.template_E], enrolled.subject_E, strict=True)
        assert list(read) == rows


def test_the_templates_may_list_the_images_in_another_order(made: MadeIJB) -> None:
    list_ = made.root / "meta/ijbc_face_tid_mid.txt"
    list_.write_text("".join(sorted(list_.read_text().splitlines(True), reverse=True)))
    files = IJBFiles(made.root, "IJBC")
    templates = files.templates(files.faces())
    read = zip(templates.image_M, templates.template_M, templates.media_M, strict=True)
    told = [(made.names[i], int(templates.ids_K[t]), int(m)) for i, t, m in read]
    assert told != made.memberships
    assert sorted(told) == sorted(made.memberships)


def test_a_csv_may_have_a_line_for_each_image_and_further_columns(made: MadeIJB) -> None:
    probes = made.root / "meta/ijbc_1N_probe_mixed.csv"
    rows = [f"{t},{s},img/{t}_{n}.jpg,7" for t, s in made.probes for n in range(3)]
    probes.write_text("\n".join(["TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID", *rows, ""]))
    files = IJBFiles(made.root, "IJBC")
    enrolled = files.probes(templates := files.templates(files.faces()))
    read = zip(templates.ids_K[enrolled.template_E], enrolled.subject_E, strict=True)
    assert list(read) == made.probes


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        file = root / "meta" / f"ijbc_{name}"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))

    return do


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (remove("meta/ijbc_face_tid_mid.txt"), "ijbc_face_tid_mid.txt: .*[Nn]o such file"),
        (remove("loose_crop/4.jpg"), r"score.txt:4: '4.jpg.*': the image is not in .*loose_crop$"),
        (
            change("name_5pts_score.txt", "\n2.jpg", "\n1.jpg"),
            "score.txt:2: '1.jpg.*': the image is listed a second time",
        ),
        (
            change("name_5pts_score.txt", "\n3.jpg ", "\n3.jpg nan "),
            r"score.txt:3: expected `name x1 y1 .* score`, got '3.jpg nan",
        ),
        (
            change("face_tid_mid.txt", "3.jpg 100 3", "3.jpg 100 media"),
            "tid_mid.txt:3: expected `name template media`, got '3.jpg 100 media'",
        ),
        (
            change("face_tid_mid.txt", "3.jpg 100", "3.jpg 10000000000"),
            "tid_mid.txt:3: expected `name template media`, got '3.jpg 10000000000 ",
        ),
        (
            change("face_tid_mid.txt", "3.jpg", "77.jpg"),
            "tid_mid.txt:3: '77.jpg 100 3': the image is not in ijbc_name_5pts_score.txt",
        ),
        (
            change("face_tid_mid.txt", "3.jpg 100 3\n", ""),
            "score.txt:3: '3.jpg .*': the image is in no template of ijbc_face_tid_mid.txt",
        ),
        (
            change("template_pair_label.txt", "10 101 0", "10 999 0"),
            r"pair_label.txt:2: '10 999 0': a template of it has no image in ijbc_face_tid_mid.txt",
        ),
        (
            change("template_pair_label.txt", "10 101 0", "10 101 2"),
            "pair_label.txt:2: '10 101 2': expected a label of 0 or 1",
        ),
        (
            change("template_pair_label.txt", "10 101 0", "10 101"),
            "pair_label.txt:2: expected `template1 template2 label`, got '10 101'",
        ),
        (
            change("template_pair_label.txt", "10 101 0\n11 100 0\n", ""),
            "pair_label.txt: all 2 pairs are of one subject; give both kinds",
        ),
        (
            change("1N_gallery_G2.csv", "11,", "12,"),
            "G2.csv:2: '12,501': a template of it has no image in ijbc_face_tid_mid.txt",
        ),
        (
            change("1N_gallery_G2.csv", ",501", ",500"),
            "meta: subject 500 is in the galleries G1 and G2 both",
        ),
        (
            change("1N_probe_mixed.csv", "101,501", "100,501"),
            "mixed.csv:3: '100,501': the template has another subject above",
        ),
        (
            change("1N_probe_mixed.csv", "101,501", "101;501"),
            "mixed.csv:3: expected `TEMPLATE_ID,SUBJECT_ID`, got '101;501'",
        ),
        (
            change("1N_probe_mixed.csv", "\n100,500\n101,501", ""),
            "mixed.csv: expected lines of `TEMPLATE_ID,SUBJECT_ID`",
        ),
    ],
)
def test_what_does_not_fit_is_told_by_file_and_line(
    made: MadeIJB, harm: Callable[[Path], None], told: str
) -> None:
    read_all(made.root)
    harm(made.root)
    with pytest.raises(UserError, match=told) as raised:
        read_all(made.root)
    assert "\n" not in str(raised.value)


def test_a_folder_above_the_set_is_told_where_the_set_is(made: MadeIJB) -> None:
    with pytest.raises(UserError, match=f"no meta folder in it.* give {made.root}$"):
        IJBFiles(made.root.parent, "IJBC")


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\n1 2\r\n\r\n3 4\r\n")
    table = read_delimited(file, {"a": pa.int32(), "b": pa.int32()})
    assert table.to_pydict() == {"a": [1, 3], "b": [2, 4]}
    assert [line_of(file, row) for row in (0, 1)] == [2, 4]
    file.write_bytes(b"\n1 2\r\n\r\n3 4 5\r\n")
    with pytest.raises(UserError, match=r"list.txt:4: expected `a b`, got '3 4 5'"):
        read_delimited(file, {"a": pa.int32(), "b": pa.int32()})
