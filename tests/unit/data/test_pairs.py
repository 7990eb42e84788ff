"""Verification sets: InsightFace's files read, hostile ones refused."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
