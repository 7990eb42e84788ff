"""Verification sets: InsightFace's files read, hostile ones refused."""

import contextlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manyfaces.configs.errors import UserError
from manyfaces.data.dataset.draw_pairs import draw_pairs
from manyfaces.data.sources.verification_bin import read_bin, write_bin


def test_round_trip_and_balance(dataset, tmp_path: Path) -> None:
    blobs, same = draw_pairs(dataset.part, 100, seed=0)
    write_bin(tmp_path / "p.bin", blobs, same)
    pairs = read_bin(tmp_path / "p.bin")
    assert [b.tobytes() for b in pairs.blobs] == blobs
    assert pairs.same.tolist() == same
    assert pairs.same.sum() == 50
    assert all(len(set(fold.tolist())) == 2 for fold in np.array_split(pairs.same, 10))
    assert all(a != b for a, b in zip(blobs[0::2], blobs[1::2], strict=True))


@pytest.mark.parametrize("protocol", range(6))
def test_layouts_in_the_wild(tmp_path: Path, protocol: int) -> None:
    """Bytes, arrays as cv2.imencode gives them, numpy booleans."""
    arrays = [np.array([[1], [2], [3]], np.uint8), b"abc"]
    (tmp_path / "p.bin").write_bytes(pickle.dumps((arrays, [np.bool_(True)]), protocol=protocol))
    pairs = read_bin(tmp_path / "p.bin")
    assert pairs.blobs[0].tolist() == [1, 2, 3]
    assert pairs.blobs[1].tobytes() == b"abc"
    assert pairs.same.tolist() == [True]


@pytest.mark.parametrize("protocol", range(6))
def test_labels_in_one_array_and_images_without_bytes(tmp_path: Path, protocol: int) -> None:
    content = ([b"", np.array([7], np.uint8)] * 2, np.array([True, False]))
    (tmp_path / "p.bin").write_bytes(pickle.dumps(content, protocol=protocol))
    pairs = read_bin(tmp_path / "p.bin")
    assert [blob.tolist() for blob in pairs.blobs] == [[], [7], [], [7]]
    assert pairs.same.tolist() == [True, False]


def test_python_2_pickles(tmp_path: Path) -> None:
    """`pickle.dumps((['\\xff\\xd8', 'b'], [True]), 2)` as Python 2 wrote it."""
    (tmp_path / "p.bin").write_bytes(
        b"\x80\x02]q\x00(U\x02\xff\xd8q\x01U\x01bq\x02e]q\x03\x88a\x86q\x04."
    )
    assert read_bin(tmp_path / "p.bin").blobs[0].tobytes() == b"\xff\xd8"
    (tmp_path / "p.bin").write_bytes(b"((lp0\nS'\\xff\\xd8'\np1\naS'b'\np2\na(lp3\nI01\natp4\n.")
    assert read_bin(tmp_path / "p.bin").blobs[0].tobytes() == b"\xff\xd8"


class Hostile:
    def __reduce__(self):
        return os.system, ("touch HACKED",)


@pytest.mark.parametrize(
    "content", [Hostile(), ([Hostile(), b"x"], [True]), ([b"x"], [True]), "text", ([], [])]
)
def test_files_that_are_no_verification_set(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"p\.bin"):
        read_bin(tmp_path / "p.bin")
    assert not (tmp_path / "HACKED").exists()


IMAGES = [b"\xff\xd8%d\xff\xd9" % number for number in range(8)]
SAME = [True, False, True, True]

LABELS = [
    np.array(SAME),
    np.array(SAME, np.float32),
    np.array(SAME, np.int64),
    np.array(SAME, ">i4"),
    np.array(SAME, object),
    np.array(["1", "0", "1", "1"]),
    [int(one) for one in SAME],
    [float(one) for one in SAME],
    [1 if one else -1 for one in SAME],
    ["1" if one else "0" for one in SAME],
    [str(one) for one in SAME],
    [np.float32(one) for one in SAME],
    tuple(SAME),
]
CONTAINERS = [
    np.array(IMAGES, object),
    np.array(IMAGES),
    [np.frombuffer(image, np.uint8) for image in IMAGES],
    [np.frombuffer(image, np.uint8)[:, None] for image in IMAGES],
    [np.asfortranarray(np.frombuffer(image, np.uint8)[None]) for image in IMAGES],
    [bytearray(image) for image in IMAGES],
    [np.void(image) for image in IMAGES],
    [np.bytes_(image) for image in IMAGES],
]


def read_pickle(path: Path, content: object, protocol: int) -> tuple[list[bytes], list[bool]]:
    (path / "p.bin").write_bytes(pickle.dumps(content, protocol=protocol))
    pairs = read_bin(path / "p.bin")
    return [blob.tobytes() for blob in pairs.blobs], pairs.same.tolist()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_odd_containers_are_read_as_what_they_are(tmp_path: Path, protocol: int) -> None:
    for labels in LABELS:
        assert read_pickle(tmp_path, (IMAGES, labels), protocol) == (IMAGES, SAME), labels
    for images in CONTAINERS:
        assert read_pickle(tmp_path, [images, SAME], protocol) == (IMAGES, SAME), images


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            (IMAGES, [1, 0, 2, 1]),
            r"the labels of its pairs are 0, 1, 2; expected 1 and 0 \(or -1\)",
        ),
        ((IMAGES, [1, 0, -1, 1]), "the labels of its pairs are -1, 0, 1"),
        ((IMAGES, [3, 7, 3, 3]), "the labels of its pairs are 3, 7"),
        ((IMAGES, [1.0, 0.0, float("nan"), 1.0]), "the label of a pair is nan"),
        ((IMAGES, np.array([1, np.nan, 0, 0])), "the label of a pair is nan"),
        ((IMAGES, ["same", "other"] * 2), "the label of a pair is 'same'; expected true or false"),
        ((IMAGES, [None] * 4), "the label of a pair is nothing"),
        ({"bins": IMAGES, "issame_list": SAME}, "it holds a dict with the keys 'bins', 'issame_l"),
        (([np.zeros((9, 9, 3), np.uint8)] * 8, SAME), r"image 0 is an array of pixels \(9, 9, 3\)"),
        ((np.zeros((8, 9, 9, 3), np.uint8), SAME), r"it holds an array of shape \(8, 9, 9, 3\) in"),
        ((["a.jpg"] * 8, SAME), "image 0 is 'a.jpg'; expected a pair of lists, the encoded images"),
        ((IMAGES, SAME, 3), "it holds a tuple"),
        ((IMAGES, SAME[:3]), "8 images for 3 pairs"),
    ],
)
def test_what_is_no_set_is_told_in_words(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pickle(tmp_path, content, 4)


LEAVES = (
    st.binary(max_size=20)
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=5)
    | st.none()
    | st.binary(min_size=1, max_size=8).map(lambda body: np.frombuffer(body, np.uint8))
)
PARTS = st.lists(LEAVES, max_size=8) | st.dictionaries(st.text(max_size=3), LEAVES) | LEAVES
SETS = st.tuples(PARTS, PARTS) | st.tuples(
    st.lists(st.binary(max_size=9), min_size=4, max_size=4),
    st.lists(
        st.sampled_from([True, False, 1, 0, -1, 1.0, "1", "0", b"1", 2]), min_size=2, max_size=2
    ),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=SETS, protocol=st.integers(0, 5))
def test_a_set_is_read_whole_or_refused(tmp_path: Path, content: Any, protocol: int) -> None:
    with contextlib.suppress(UserError):
        blobs, same = read_pickle(tmp_path, content, protocol)
        assert blobs == [bytes(image) for image in content[0]]
        assert len(same) == len(content[1])
        for read, given_label in zip(same, content[1], strict=True):
            assert read == (given_label in (True, 1, "1", b"1"))


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match="No such file"):
        read_bin("nowhere.bin")


def test_no_damaged_file_ends_the_process() -> None:
    """The first files forge a dtype whose bytes are pointers, which numpy's constructors believe:
    a segmentation fault."""
    script = Path(__file__).parents[2] / "bench" / "fuzz_bin.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--files", "600"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "none ended the process" in ended.stdout


@pytest.mark.parametrize(
    "body",
    [
        pickle.dumps({"a": 1}, 2),
        b"\x80\x02" + b"]" + b"\x85" * 200_000 + b".",  # tuples deep in each other
        b"\x80\x02(r\xff\xff\xff\xff]r\xff\xff\xff\xff.",  # the memo's last place
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",  # eight exabytes
        b"\x80\x02c_codecs\nencode\nq\x00X\x00\x10\x00\x00" + b"a" * 4096 + b"q\x01"
        b"X\x06\x00\x00\x00latin1q\x020" + b"](" + b"h\x00h\x01h\x02\x86R" * 9 + b"e.",
    ],
)
def test_files_that_would_take_stack_or_memory(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "p.bin").write_bytes(body)
    with pytest.raises(UserError, match=r"p\.bin: not a verification set"):
        read_bin(tmp_path / "p.bin")
