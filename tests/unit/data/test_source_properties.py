"""Made sources of each kind, whole and damaged: never a traceback, never a silent loss. What goes in
is kept or listed as left out, or the source is refused in one line."""

import json
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_recordio import image, insightface
from test_recordio import write as write_rec

from manyfaces.configs.errors import UserError
from manyfaces.data.conversion.convert import convert
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.sources.recognise import recognise
from manyfaces.data.sources.source import Dropped, Source
from manyfaces.data.synthetic.faces import encode

QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
FOLDERS = ["ann", "bob", "Ann", "front", "train", "test", ".x", "@eaDir", "lost+found", "é", "a b"]
FILES = [
    "1.jpg",
    "2.PNG",
    "3.tiff",
    "4.heic",
    "._1.jpg",
    "Thumbs.db",
    "5.jpg.bak",
    "6",
    ".jpg",
    "7.zip",
]
NAMES = st.lists(
    st.tuples(st.lists(st.sampled_from(FOLDERS), max_size=3), st.sampled_from(FILES)).map(
        lambda parts: "/".join([*parts[0], parts[1]])
    ),
    min_size=1,
    max_size=12,
    unique=True,
)
MUTATION = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["cut", "flip", "drop", "ff"])),
    min_size=1,
    max_size=3,
)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def opened(path: Path, **options: object) -> Source | None:
    """The source; None where it is refused, which has to be in one line that names the place."""
    try:
        return recognise(path, options)
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert path.stem in refusal
    return None


def read(source: Source) -> Counter[str]:
    """How many images can be read and how many say why not."""
    counts = Counter[str]()
    for row in range(len(source.label_N)):
        assert source.identities[source.label_N[row]]
        assert source.name(row)
        try:
            assert isinstance(source.place(row).read(), bytes)
            counts["read"] += 1
        except Dropped:
            counts["dropped"] += 1
    return counts


def mutated(body: bytes, changes: list[tuple[float, str]]) -> bytes:
    for place, change in changes:
        at = int(place * len(body))
        if change == "cut":
            body = body[:at]
        elif change == "drop":
            body = body[:at] + body[at + 7 :]
        else:
            new = (
                b"\xff\xff\xff\xff"
                if change == "ff"
                else bytes(b ^ 0x5A for b in body[at : at + 2])
            )
            body = body[:at] + new + body[at + len(new) :]
    return body


@QUICK
@given(NAMES)
def test_a_folder_loses_nothing(names: list[str]) -> None:
    with folder() as root:
        (root / "src").mkdir()
        there = []
        for name in names:
            path = root / "src" / name
            if not any(p.is_file() for p in path.parents) and not path.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
                there.append(name)
        if source := opened(root / "src"):
            kept = [source.name(row) for row in range(len(source.label_N))]
            assert sorted(kept + [name for name, _ in source.left_out]) == sorted(there)
            assert read(source)["read"] == len(kept)


@QUICK
@given(NAMES, st.sampled_from(["/", "\\"]), st.booleans())
def test_a_zip_loses_nothing(names: list[str], separator: str, packed: bool) -> None:
    with folder() as root:
        method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with zipfile.ZipFile(root / "a.zip", "w", method) as archive:
            for name in names:
                info = zipfile.ZipInfo("x")
                info.filename = name.replace("/", separator)
                archive.writestr(info, name)
        if source := opened(root / "a.zip"):
            kept = [source.name(row) for row in range(len(source.label_N))]
            left = [name.removeprefix("a.zip:") for name, _ in source.left_out]
            assert sorted(kept + left) == sorted(names)
            assert read(source)["read"] == len(kept)


LINES = st.lists(
    st.tuples(
        st.sampled_from(["ann/1.jpg", "ann/2.jpg", "b b/3.jpg", "gone.jpg", "path", '"ann/4.jpg"']),
        st.sampled_from(["\t", " ", " \t", ",", ""]),
        st.sampled_from(["7", "007", "ann lee", "label", "", '"7"', "ann/1.jpg"]),
    ).map("".join),
    min_size=1,
    max_size=6,
)


@QUICK
@given(
    LINES,
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]),
    st.sampled_from(["\n", "\r\n", "\r\n\r\n", " \n"]),
    st.booleans(),
)
def test_a_list_loses_nothing(lines: list[str], encoding: str, end: str, windows: bool) -> None:
    with folder() as root:
        for name in ("ann/1.jpg", "ann/2.jpg", "b b/3.jpg", "ann/4.jpg"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(b"x")
        text = end.join(lines) + end
        text = text.replace("/", "\\") if windows else text
        (root / "l.txt").write_bytes(text.encode(encoding))
        if source := opened(root / "l.txt"):
            given_lines = sum(1 for line in lines if line.strip())
            assert sum(read(source).values()) + len(source.left_out) == given_lines


@QUICK
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([b"", b"x", None])), min_size=1, max_size=9
    ),
    st.integers(1, 4),
    st.booleans(),
)
def test_parquet_loses_nothing(
    rows: list[tuple[int, bytes | None]], rows_a_group: int, as_struct: bool
) -> None:
    with folder() as root:
        blobs: list[object] = [blob for _, blob in rows]
        kind = pa.binary()
        if as_struct:
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            blobs = [{"bytes": blob, "path": "1.jpg"} for blob in blobs]
        table = pa.table({"image": pa.array(blobs, kind), "label": [label for label, _ in rows]})
        pq.write_table(table, root / "a.parquet", row_group_size=rows_a_group)
        source = opened(root / "a.parquet")
        assert source is not None
        assert read(source) == Counter("read" if blob else "dropped" for _, blob in rows)


@QUICK
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=9),
    st.booleans(),
    st.sampled_from(["none", "whole", "shuffled", "shorter", "hole", "twice"]),
)
def test_records_lose_nothing(labels: list[int], by_identity: bool, idx: str) -> None:
    with folder() as root:
        labels = sorted(labels) if by_identity else labels
        rows = [(key, image(label, b"x" * key)) for key, label in enumerate(labels)]
        path = write_rec(root, insightface(labels) if by_identity else rows, idx != "none")
        if idx != "none":
            told = path.with_suffix(".idx").read_text().splitlines(keepends=True)
            middle = len(told) // 2
            changed = {
                "whole": told,
                "shuffled": told[::-1],
                "shorter": told[:-1],
                "hole": told[:middle] + told[middle + 1 :],
                "twice": [*told, told[middle]],
            }
            path.with_suffix(".idx").write_text("".join(changed[idx]))
        source = opened(path)
        assert (source is None) == (idx in ("shorter", "hole", "twice"))
        if source is not None:
            assert read(source) == Counter(read=len(labels))


@QUICK
@given(st.sampled_from(["zip", "zip64", "rec", "idx", "txt", "parquet"]), MUTATION)
def test_no_damage_is_a_traceback(kind: str, changes: list[tuple[float, str]]) -> None:
    with folder() as root:
        path = damaged_file(root, kind)
        changed = path.with_suffix(".idx") if kind == "idx" else path
        changed.write_bytes(mutated(changed.read_bytes(), changes))
        if source := opened(path):
            read(source)


def damaged_file(root: Path, kind: str) -> Path:
    if kind.startswith("zip"):
        limit = zipfile.ZIP64_LIMIT
        zipfile.ZIP64_LIMIT = 60 if kind == "zip64" else limit
        try:
            with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for number in range(4):
                    archive.writestr(f"p{number}/é.jpg", b"body" * 40)
        finally:
            zipfile.ZIP64_LIMIT = limit
        return root / "a.zip"
    if kind in ("rec", "idx"):
        return write_rec(root, insightface([0, 0, 1, 2]))
    if kind == "txt":
        (root / "1.jpg").write_bytes(b"x")
        (root / "l.txt").write_bytes("1.jpg\tann\n2.jpg\tbob\n".encode("utf-16"))
        return root / "l.txt"
    pq.write_table(
        pa.table({"image": [b"x" * 50] * 9, "label": list("aabbccdde")}), root / "a.parquet"
    )
    return root / "a.parquet"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_conversion_accounts_for_every_file(tmp_path: Path, kind: str) -> None:
    good = encode(1, 2, 3)
    bodies = {
        "ann/1.jpg": good,
        "ann/2.jpg": good[:-30],
        "ann/3.jpg": good[:900] + b"\xff\xd9",
        "ann/4.jpg": good + b"\r\n",
        "bob/1.jpg": b"",
        "bob/2.png": good,
        "bob/3.heic": b"x",
        "bob/._1.jpg": b"\0\5\x16\7",
        "bob/@eaDir/1.jpg": good,
        "Thumbs.db": b"x",
    }
    if kind == "folder":
        for name, body in bodies.items():
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / name).write_bytes(body)
    else:
        with zipfile.ZipFile(tmp_path / "src", "w") as archive:
            for name, body in bodies.items():
                archive.writestr(name, body)
        (tmp_path / "src").rename(tmp_path / "src.zip")
    source, out = tmp_path / ("src" if kind == "folder" else "src.zip"), tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert([source], out, processes=1)
    assert open_part(out).manifest.num_images == 3
    rows = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert len(rows) + 3 == len(bodies)
    assert all(row["reason"] for row in rows)


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    label = pa.array([b"gr\xfcn"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [b"x"], "label": label}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a label or a path is not UTF-8"):
        recognise(tmp_path / "a.parquet")
