"""RecordIO files written here from the description of the bytes, and what is read of them: joined
records, labels, refusals."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.configs.errors import UserError
from manyfaces.data.sources import float_labels
from manyfaces.data.sources.face_records import RecordAt, read_records
from manyfaces.data.sources.float_labels import first_images
from manyfaces.data.sources.recordio import read_payload, scan_offsets
from manyfaces.data.sources.source import Dropped

MAGIC = bytes.fromhex("0a23d7ce")
Row = tuple[int, bytes]  # key and payload


def record(payload: bytes) -> bytes:
    """dmlc's RecordIOWriter: split at each magic that stands at a multiple of 4."""
    parts, start = [], 0
    for at in range(0, len(payload) - 3, 4):
        if payload[at : at + 4] == MAGIC:
            parts.append(payload[start:at])
            start = at + 4
    parts.append(payload[start:])
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + b"\0" * (-len(part) % 4)
        for flag, part in zip(flags, parts, strict=True)
    )


def image(label: float, body: bytes, key: int = 0) -> bytes:
    return struct.pack("<IfQQ", 0, label, key, 0) + body


def labelled(labels: list[float], body: bytes = b"", id2: int = 0) -> bytes:
    return (
        struct.pack("<IfQQ", len(labels), 0, 0, id2)
        + struct.pack(f"<{len(labels)}f", *labels)
        + body
    )


def insightface(labels: list[int], rounded=float, body=lambda key: b"image %d" % key) -> list[Row]:
    """As `rec_builder.py` writes: images by identity, identity records, and key 0 at the end."""
    n, firsts = (
        len(labels),
        [row + 1 for row in range(len(labels)) if row == 0 or labels[row] != labels[row - 1]],
    )
    rows = [(key, image(rounded(label), body(key), key)) for key, label in enumerate(labels, 1)]
    for number, (first, end) in enumerate(zip(firsts, [*firsts[1:], n + 1], strict=False)):
        rows.append((n + 1 + number, labelled([rounded(first), rounded(end)])))
    return [*rows, (0, labelled([rounded(n + 1), rounded(n + 1 + len(firsts))], id2=1))]


def write(folder: Path, rows: list[Row], idx: bool = True) -> Path:
    path, offset = folder / "train.rec", 0
    lines, blocks = [], []
    for key, payload in rows:
        lines.append(f"{key}\t{offset}\n")
        blocks.append(record(payload))
        offset += len(blocks[-1])
    path.write_bytes(b"".join(blocks))
    path.with_suffix(".idx").unlink(missing_ok=True)
    if idx:
        path.with_suffix(".idx").write_text("".join(lines))
    return path


def images(path: Path) -> dict[int, tuple[int, bytes]]:
    """Key: label and bytes of every image."""
    found = read_records(path)
    rows = zip(found.key_N.tolist(), found.offset_N.tolist(), found.label_N.tolist(), strict=True)
    return {key: (label, RecordAt(str(path), offset, key).read()) for key, offset, label in rows}


@given(
    st.lists(
        st.lists(st.sampled_from([MAGIC, b"", b"a", b"bcd", b"\0" * 4, MAGIC[:3]]), max_size=9).map(
            b"".join
        ),
        min_size=1,
    )
)
def test_records_come_back_whole(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]
) -> None:
    path = write(tmp_path_factory.mktemp("rec"), list(enumerate(payloads)))
    assert [read_payload(str(path), offset) for offset in scan_offsets(path).tolist()] == payloads


@pytest.mark.parametrize("idx", [True, False])
def test_the_insightface_layout(tmp_path: Path, idx: bool) -> None:
    labels = [0, 0, 0, 1, 2, 2]
    path = write(tmp_path, insightface(labels), idx)
    assert images(path) == {key: (label, b"image %d" % key) for key, label in enumerate(labels, 1)}
    assert read_records(path).notes == []


@pytest.mark.parametrize("idx", [True, False])
def test_the_im2rec_layout(tmp_path: Path, idx: bool) -> None:
    labels = [3, 0, 3, 1]
    path = write(
        tmp_path, [(key, image(label, b"x" * key)) for key, label in enumerate(labels)], idx
    )
    assert images(path) == {key: (label, b"x" * key) for key, label in enumerate(labels)}


def test_several_labels_are_no_global_record(tmp_path: Path) -> None:
    """Glint360K's unpacker takes the first of them; a shuffled file may have such an image under
    key 0."""
    path = write(
        tmp_path,
        [
            (0, labelled([5, 9], b"one")),
            (1, labelled([2, 9, 1], b"two")),
            (2, labelled([7], b"three")),
        ],
    )
    assert images(path) == {0: (5, b"one"), 1: (2, b"two"), 2: (7, b"three")}


@pytest.mark.parametrize("at", [20, 28, 32, 36, 40])
def test_a_split_record_keeps_its_label(tmp_path: Path, at: int) -> None:
    """The magic may stand anywhere, even in the header's own fields (bytes 8 to 24 are ids) or in
    the labels."""
    payload = bytearray(labelled([4, 1], b"a picture of some bytes.." + b"\0" * 7))
    payload[at : at + 4] = MAGIC
    assert len(record(bytes(payload))) == 8 + len(payload) + 4  # two heads, less the magic
    path = write(tmp_path, [(1, bytes(payload)), (2, image(3, MAGIC * 3))])
    assert images(path) == {1: (4, bytes(payload[32:])), 2: (3, MAGIC * 3)}


def test_a_broken_magic_names_its_byte(tmp_path: Path) -> None:
    path = write(tmp_path, [(key, image(0, b"12345678")) for key in range(4)])
    offset = read_records(path).offset_N[2]
    blob = bytearray(path.read_bytes())
    blob[offset] ^= 255
    path.write_bytes(blob)
    with pytest.raises(UserError, match=rf"train.rec: no whole record at byte {offset} "):
        read_records(path)
    path.with_suffix(".idx").unlink()
    with pytest.raises(UserError, match=rf"train.rec: no record at byte {offset} "):
        read_records(path)
    with pytest.raises(Dropped, match="not whole"):
        RecordAt(str(path), int(offset), 2).read()


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path, [(key, image(0, b"12345678")) for key in range(4)])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="no whole record at byte 120"):
        read_records(path)
    path.with_suffix(".idx").unlink()
    with pytest.raises(UserError, match="cut off inside the record at byte 120"):
        read_records(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="an empty file"):
        read_records(path)


@pytest.mark.parametrize(
    ("idx", "match"),
    [
        ("0 0\n", "expected lines `key<TAB>byte offset`"),
        ("", "expected lines"),
        ("0\t0\n0\t40\n", "key 0 stands in two lines"),
        ("0\t4\n", "no whole record at byte 4 "),
        ("0\t400\n", "no whole record at byte 400 "),
        ("0\t-8\n", "no whole record at byte -8 "),
    ],
)
def test_an_idx_that_does_not_fit(tmp_path: Path, idx: str, match: str) -> None:
    path = write(tmp_path, [(key, image(0, b"12345678")) for key in range(2)])
    path.with_suffix(".idx").write_text(idx)
    with pytest.raises(UserError, match=match):
        read_records(path)


@pytest.mark.parametrize("label", [0.5, -1.0, float("nan"), float("inf")])
def test_labels_that_are_none(tmp_path: Path, label: float) -> None:
    with pytest.raises(UserError, match=r"key 7: label .* is not an integer in"):
        read_records(write(tmp_path, [(5, image(1, b"a")), (7, image(label, b"b"))]))


def test_a_global_record_that_contradicts_the_file(tmp_path: Path) -> None:
    rows = insightface([0, 0, 1])
    with pytest.raises(
        UserError,
        match=r"key 0 says that identity records have the keys \[4, 6\), the file has them in \[4, 5\)",
    ):
        read_records(write(tmp_path, rows[:-2] + rows[-1:]))


def test_identity_records_that_contradict_the_labels_are_told(tmp_path: Path) -> None:
    rows = insightface([0, 0, 1, 2])
    rows[5] = (6, labelled([2, 4]))
    found = read_records(write(tmp_path, rows))
    assert found.label_N.tolist() == [0, 0, 1, 2]
    assert "1 identity records have other ranges" in found.notes[0]


def test_records_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image record"):
        read_records(write(tmp_path, insightface([])))
    with pytest.raises(UserError, match="3 bytes, too few for an image header"):
        read_records(write(tmp_path, [(0, b"abc")]))


# The float32 trap, with a float16 in its place: integers beyond 2,048 instead of 16,777,216 are
# rounded.


def half(number: float) -> float:
    return float(np.float16(number))


@pytest.fixture
def short_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_labels, "FLOAT", np.float16)


@pytest.mark.usefixtures("short_floats")
def test_ranges_that_a_float_cannot_hold_are_not_needed(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(1001), 3).tolist()
    path = write(tmp_path, insightface(labels, half))
    found = read_records(path)
    assert found.label_N.tolist() == labels
    assert found.key_N.tolist() == list(range(1, 3004))
    assert "identity ranges beyond 2,048" in found.notes[0]


@pytest.mark.usefixtures("short_floats")
def test_labels_that_a_float_cannot_hold_are_recovered(tmp_path: Path) -> None:
    """2,050 keeps its own float and may have many images; the three around 2,052 share one, and
    share three images."""
    labels = np.repeat(np.arange(2100), np.where(np.arange(2100) % 4 == 2, 5, 1)).tolist()
    found = read_records(write(tmp_path, insightface(labels, half)))
    assert found.label_N.tolist() == labels
    assert "recovered from the images' positions" in found.notes[0]


@pytest.mark.usefixtures("short_floats")
def test_labels_that_stay_open_are_refused_by_key(tmp_path: Path) -> None:
    labels = [*range(2048), 2048, 2048, 2048, 2048, 2049, 2049, 2049]
    rows = insightface(labels, half)
    record_key = len(labels) + 1 + 2049
    with pytest.raises(
        UserError, match=f"key {record_key}: a float32 cannot hold this identity's range"
    ):
        read_records(write(tmp_path, rows))


@pytest.mark.usefixtures("short_floats")
def test_im2rec_labels_beyond_come_from_its_list(tmp_path: Path) -> None:
    labels = [7, 2049, 3001, 2047]
    path = write(tmp_path, [(key, image(half(label), b"x")) for key, label in enumerate(labels)])
    with pytest.raises(
        UserError, match=r"key 1: label 3000 is beyond 2,048.* put train.lst beside it"
    ):
        read_records(path)
    lst = path.with_suffix(".lst")
    lst.write_text(
        "".join(
            f"{key}\t{label}.000000\tx/{key}.jpg\n"
            for key, label in reversed(list(enumerate(labels)))
        )
    )
    assert read_records(path).label_N.tolist() == labels
    lst.write_text("0\t7\ta.jpg\n")
    with pytest.raises(UserError, match=r"train.lst: no label for key 1"):
        read_records(path)
    lst.write_text("nonsense\n")
    with pytest.raises(UserError, match=r"train.lst:1: expected `key<TAB>label<TAB>path`"):
        read_records(path)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(0, 3))
def test_recovered_positions_always_hold_the_true_ones(counts: list[int], spread: int) -> None:
    """Against made truth: the interval of every identity's first image holds it, whatever was
    rounded."""
    counts = [1] * (2046 + spread) + counts
    first_K = np.cumsum([1, *counts[:-1]])
    labels = np.repeat(np.arange(len(counts)), counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(float_labels, "FLOAT", np.float16)
        lowest, highest = first_images(
            labels.astype(np.float16).astype(float), first_K.astype(np.float16).astype(float)
        )
    assert (lowest <= first_K - 1).all()
    assert (first_K - 1 <= highest).all()


def test_an_idx_that_was_cut_between_two_lines(tmp_path: Path) -> None:
    """The lines of im2rec's files, and InsightFace's, whose last line is that of key 0."""
    for rows in ([(k, image(k // 2, b"x" * k)) for k in range(6)], insightface([0, 0, 1, 2])):
        path = write(tmp_path, rows)
        idx = path.with_suffix(".idx")
        lines = idx.read_text().splitlines(keepends=True)
        read_records(path)
        for kept in range(1, len(lines)):
            idx.write_text("".join(lines[:kept]))
            with pytest.raises(UserError, match=r"train\.rec: goes on behind the last record"):
                read_records(path)


def test_a_rec_that_was_cut_between_two_records(tmp_path: Path) -> None:
    """With its .idx, and without where anything tells it."""
    rows = insightface([0, 0, 1, 2])
    path = write(tmp_path, rows)
    whole, idx = path.read_bytes(), path.with_suffix(".idx")
    ends = np.cumsum([len(record(payload)) for _, payload in rows]).tolist()[:-1]
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"train\.rec: no whole record"):
            read_records(path)
    idx.unlink()
    (tmp_path / "property").write_text("4,112,112")
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"train\.rec: .*(cut off between two|key 0 says)"):
            read_records(path)
    (tmp_path / "property").unlink()
    path.write_bytes(whole[: ends[2]])
    assert any("nothing would tell" in note for note in read_records(path).notes)


def test_a_rec_that_was_cut_between_two_parts_of_a_record(tmp_path: Path) -> None:
    path = write(tmp_path, [(0, image(0, b"a")), (1, image(1, b"ab12" + MAGIC + b"cd34"))], False)
    body = path.read_bytes()
    path.write_bytes(body[: body.rindex(MAGIC)])
    with pytest.raises(UserError, match="between two of its parts"):
        read_records(path)
