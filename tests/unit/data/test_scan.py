"""Shards that others wrote: whatever they hold, no image is lost without a word."""

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.index_shards import index_folder
from manyfaces.data.dataset.scan import scan

Members = Sequence[tuple[str, bytes]]


def shard_of(members: Members, path: Path, form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def sample(key: str, number: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", key.encode()), (f"{key}.cls", b"%d" % number)]


REFUSED: list[tuple[str, Members, str]] = [
    ("a key twice in a row", [*sample("0"), *sample("0", 1)], r"'0' has 0\.jpg and 0\.jpg; give"),
    ("a key twice", [*sample("0"), *sample("1"), *sample("0")], "key '0' stands twice"),
    ("an image twice", [("0.jpg", b""), *sample("1"), *sample("0")], "key '0' stands twice"),
    ("jpg and jpeg", [*sample("0"), ("0.jpeg", b"x")], r"'0' has 0\.jpg and 0\.jpeg; give"),
    ("jpg and JPG", [*sample("0"), ("0.JPG", b"x")], r"'0' has 0\.jpg and 0\.JPG; give"),
    ("two labels", [*sample("0"), ("0.CLS", b"0")], r"'0' has 0\.cls and 0\.CLS; give"),
    (
        "all images, then all labels",
        [("0.jpg", b"a"), ("1.jpg", b"b"), ("0.cls", b"0"), ("1.cls", b"1")],
        r"members of key '0' do not lie next to each other \(0\.jpg and, after others, 0\.cls\); "
        "write the tar with --sort=name",
    ),
    (
        "labels that differ",
        [*sample("0", 3), ("0.json", b'{"label": 4}')],
        r"labels that differ \(0\.cls 3 and 0\.json label 4\)",
    ),
    (
        "labels that differ, by the first number of a JSON",
        [*sample("0", 3), ("0.json", b'{"identity": 4, "label": 3}')],
        r"labels that differ \(0\.cls 3 and 0\.json identity 4\)",
    ),
    (
        "a label twice in one file",
        [("0.jpg", b"a"), ("0.json", b'{"label": 1, "label": 4}')],
        "is not an integer",
    ),
    ("half a sample", [*sample("0"), ("1.jpg", b"x")], r"'1' has no \.cls or \.json, only 1\.jpg"),
    ("the other half", [*sample("0"), ("1.cls", b"1")], r"'1' has no \.jpg, only 1\.cls"),
    ("dots in names", [*sample("a.1"), *sample("a.2")], r"'a' has no \.jpg, only a\.1\.jpg"),
    (
        "a PNG, and its label after others",
        [("1.png", b"x"), *sample("0"), ("1.cls", b"0")],
        r"members of key '1' do not lie next to each other \(1\.png and, after others, 1\.cls\)",
    ),
    ("PNGs with dots", [("a.1.png", b"x"), ("a.1.cls", b"0")], r"'a' has no \.jpg, only a\.1\.png"),
    ("a PNG with a label", [("1.png", b"x"), ("1.cls", b"0")], r"'1' has no \.jpg, only 1\.cls, 1"),
    ("a label with an underscore", [("0.jpg", b""), ("0.cls", b"1_0")], "label b'1_0'"),
    ("a label of other digits", [("0.jpg", b""), ("0.cls", "٣".encode())], "is not an integer"),
    ("a label of two lines", [("0.jpg", b""), ("0.cls", b"1\n2\n")], "is not an integer"),
    ("an empty label", [("0.jpg", b""), ("0.cls", b"")], "label b'' is not"),
    ("a huge label", [("0.jpg", b""), ("0.cls", b"9" * 5000)], "is not an integer"),
    ("a name", [("0.jpg", b""), ("0.cls", b"ann")], "label b'ann' is not an integer"),
    ("a name in JSON", [("0.jpg", b""), ("0.json", b'{"label": "ann"}')], "is not an integer"),
    ("JSON without a label", [("0.jpg", b""), ("0.json", b'{"w": 3}')], "is not an integer"),
    ("deep JSON", [("0.jpg", b""), ("0.json", b"[" * 200_000)], "is not an integer"),
]


@pytest.mark.parametrize(
    ("members", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_members_that_contradict_each_other_are_refused(
    tmp_path: Path, members: Members, message: str
) -> None:
    path = shard_of(members, tmp_path / "x.tar")
    with pytest.raises(UserError, match=message) as error:
        list(scan(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


KEPT: list[tuple[str, Members, list[tuple[str, int]]]] = [
    ("upper case", [("0.JPG", b"x"), ("0.CLS", b" 7\r\n")], [("0", 7)]),
    ("label before image", [("0.cls", b"1"), ("0.jpeg", b"x")], [("0", 1)]),
    ("a byte order mark", [("0.jpg", b"x"), ("0.cls", b"\xef\xbb\xbf5")], [("0", 5)]),
    ("JSON that agrees", [*sample("0", 3), ("0.json", b'{"label": "3"}')], [("0", 3)]),
    ("JSON with a name", [*sample("0", 3), ("0.json", b'{"label": "ann"}')], [("0", 3)]),
    (
        "JSON of two numbers",
        [("0.jpg", b"x"), ("0.json", b'{"identity": 28, "label": 1}')],
        [("0", 28)],
    ),
    (
        "JSON of a name and a number",
        [("0.jpg", b"x"), ("0.json", b'{"identity": "ann", "label": 3}')],
        [("0", 3)],
    ),
    (
        "JSON that agrees by its number",
        [*sample("0", 3), ("0.json", b'{"identity": "ann", "cls": 3}')],
        [("0", 3)],
    ),
    ("folders", [*sample("./a/0", 1), *sample("./b/0", 2)], [("./a/0", 1), ("./b/0", 2)]),
    ("an empty image", [("0.jpg", b""), ("0.cls", b"0")], [("0", 0)]),
    ("long names", sample("n" * 300 + "é" * 90, 1), [("n" * 300 + "é" * 90, 1)]),
]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("members", "kept"), [r[1:] for r in KEPT], ids=[r[0] for r in KEPT])
def test_what_others_write_is_read(
    tmp_path: Path, members: Members, kept: list[tuple[str, int]], form: int
) -> None:
    found = list(scan(shard_of(members, tmp_path / "x.tar", form)))
    assert [(one.key, one.identity) for one in found] == kept


def test_a_name_cut_off_within_a_letter_is_told_whole(tmp_path: Path) -> None:
    """A hundred bytes of it stand in the member's own header."""
    key = "é" * 60
    shard_of(sample(key), tmp_path / "x.tar")
    index_folder(tmp_path, processes=1)
    assert open_part(tmp_path).keys(open_part(tmp_path).identity_N * 0) == [f"x.tar:{key}"]


def test_names_that_are_no_utf_8_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, body in [*sample("Ren\xe9"), ("Zo\xeb.jpg", b"")]:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    with pytest.raises(UserError, match=r"sample 'Zo\\\\xeb' has no \.cls or \.json") as error:
        list(scan(path))
    str(error.value).encode()
    assert next(scan(path)).key == r"Ren\xe9"


def test_what_is_no_part_of_a_sample_is_told(tmp_path: Path) -> None:
    members = [
        ("._0.jpg", b"resource fork"),
        *sample("0"),
        ("0.txt", b"beside"),
        ("__MACOSX/1.jpg", b""),
        ("README", b"words"),
        ("list.csv", b"1"),
        ("list.tsv", b"1"),
        (".thumbnails/0.jpg", b""),
        ("0_mask.png", b""),
        ("0_mask.txt", b""),
        ("preview.gif", b""),
    ]
    shard_of(members, tmp_path / "x.tar")
    shard_of([("a", b"")], tmp_path / "._x.tar")
    (tmp_path / "more").mkdir()
    shard_of(sample("1"), tmp_path / "more" / "y.tar")
    told: list[str] = []
    assert index_folder(tmp_path, processes=1, tell=told.append).num_images == 1
    assert told == [
        "left out: 1 hidden files that end in .tar, such as ._x.tar",
        "left out: 1 .tar files in folders below, such as more/y.tar",
        "left out: 3 members hidden, or the system's, such as x.tar:._0.jpg",
        "left out: 1 member beside an image and its label, such as x.tar:0.txt",
        "left out: 4 members without an image or a label of the same key, such as x.tar:README",
        "left out: 2 members of another image format than JPEG and without a label, such as "
        "x.tar:0_mask.png",
    ]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_image_that_is_a_link_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a.cls"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "b" + name[1:]
            tar.addfile(info)
    with pytest.raises(UserError, match=r"sample 'a': a\.jpg is a link, sparse or no file; write"):
        list(scan(tmp_path / "x.tar"))


def test_a_sparse_image_is_refused(tmp_path: Path) -> None:
    """Its bytes in the tar are not those of the file."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 512
        info.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": "2048"}
        tar.addfile(info, io.BytesIO(bytes(512)))
    with pytest.raises(UserError, match=r"a\.jpg is a link, sparse"):
        list(scan(tmp_path / "x.tar"))


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    body = shard_of(sample("0"), tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(gzip.compress(body))
    with pytest.raises(UserError, match=r"x\.tar: compressed by gzip; decompress it"):
        index_folder(tmp_path, processes=1)
    shard_of(sample("0"), tmp_path / "x.tar")
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(body))
    with pytest.raises(UserError, match=r"y\.tar\.gz: compressed; decompress it"):
        index_folder(tmp_path, processes=1)


def test_a_negative_size_does_not_go_round_in_circles(tmp_path: Path) -> None:
    path = shard_of([*sample("0"), *sample("1")], tmp_path / "x.tar")
    body = bytearray(path.read_bytes())
    info = tarfile.TarInfo("1.jpg")
    at = body.index(b"1.jpg")
    header = bytearray(body[at : at + 512])
    header[124:136] = b"\xff" * 10 + b"\xf6\x00"  # -2560, as GNU tar writes numbers
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    body[at : at + 512] = header
    path.write_bytes(body)
    assert info.size == 0
    with pytest.raises(UserError, match=r"x\.tar: not a whole tar file after sample"):
        list(scan(path))


KEYS = st.sampled_from(["0", "1", "a/0", "./1", "é", "n" * 120, "._0", ".h/0", "x.y", "__MACOSX/0"])
SUFFIXES = st.sampled_from(["jpg", "jpeg", "JPG", "cls", "json", "txt", "png", "seg.jpg", ""])
BODIES = st.sampled_from(
    [b"", b"0", b"1", b"-1", b"ann", b'{"label": 1}', b'{"label": "1"}', b"{}"]
)
MEMBERS = st.lists(st.tuples(KEYS, SUFFIXES, BODIES), max_size=12)
FAST = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scanned(path: Path) -> tuple[list[str], list[str]] | None:
    """Keys of the samples and names of what is left out; None for a shard that is refused."""
    left_out: list[str] = []
    told = ""
    try:
        keys = [one.key for one in scan(path, lambda _, name: left_out.append(name))]
    except UserError as error:
        told = str(error)
    told.encode()
    assert "\n" not in told
    return None if told else (keys, left_out)


@FAST
@given(members=MEMBERS, form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_every_member_is_kept_or_listed_or_the_shard_is_refused(
    tmp_path: Path, members: list[tuple[str, str, bytes]], form: int
) -> None:
    named = [(f"{key}.{suffix}" if suffix else key, body) for key, suffix, body in members]
    found = scanned(shard_of(named, tmp_path / "x.tar", form))
    if found is None:
        return
    keys, left_out = found
    images = [n for n, _ in named if n.lower().endswith((".jpg", ".jpeg")) and n not in left_out]
    labels = [n for n, _ in named if n.endswith((".cls", ".json")) and n not in left_out]
    assert sorted(image.rpartition(".")[0] for image in images) == sorted(keys)
    assert {label.rpartition(".")[0] for label in labels} == set(keys)
    assert len(named) == len(images) + len(labels) + len(left_out)


@FAST
@given(
    members=MEMBERS,
    faults=st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 9000) | st.none(),
)
def test_a_damaged_shard_is_read_or_refused(
    tmp_path: Path,
    members: list[tuple[str, str, bytes]],
    faults: list[tuple[int, int]],
    cut: int | None,
) -> None:
    named = [(f"{key}.{suffix}" if suffix else key, body) for key, suffix, body in members]
    path = shard_of([*sample("first"), *named], tmp_path / "x.tar")
    body = bytearray(path.read_bytes())
    for at, value in faults:
        body[at % len(body)] = value
    path.write_bytes(body[:cut])
    scanned(path)
