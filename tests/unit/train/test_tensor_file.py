"""Our safetensors files against the safetensors library: it reads what we write, and we read what
it writes; neither way takes a second copy of a tensor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import file_sha256
from manyfaces.train.checkpoint import tensor_file
from manyfaces.train.checkpoint.snapshot import HostCopy, Snapshot
from manyfaces.train.checkpoint.tensor_file import read_rows, stored_tensors, write_tensors

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint8, torch.bool]


def made(dtype: torch.dtype, shape: list[int], transposed: bool) -> Tensor:
    tensor = torch.randint(0, 100, shape).to(dtype)
    return tensor.T.contiguous().T if transposed and len(shape) == 2 else tensor


TENSORS = st.dictionaries(
    st.sampled_from("abcdefg"),
    st.builds(
        made,
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 7), max_size=3),
        st.booleans(),
    ),
)


@given(tensors=TENSORS, part_bytes=st.integers(8, 200))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_the_library_reads_what_is_written_and_is_read(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], part_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    ours, theirs = folder / "ours", folder / "theirs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_file, "PART_BYTES", part_bytes)
        facts = write_tensors(ours, tensors, {"format": "pt"})
        assert (facts.bytes, facts.sha256) == (ours.stat().st_size, file_sha256(ours))
        read = load_file(ours)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, theirs)
        for stored in stored_tensors(theirs):
            tensor = tensors[stored.name]
            assert (stored.dtype, stored.shape) == (tensor.dtype, tuple(tensor.shape))
            if tensor.dim():
                into = torch.zeros_like(tensor)[1:]
                read_rows(theirs, stored, 1, into)
                assert torch.equal(into, tensor[1:])


def test_a_large_tensor_is_written_from_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "PART_BYTES", 64)
    tensor = torch.arange(50.0)
    head, *parts = tensor_file._parts(memoryview(b"head"), [tensor])
    assert bytes(head) == b"head"
    assert [len(part) for part in parts] == [64, 64, 64, 8]
    assert all(np.shares_memory(np.asarray(part), tensor.numpy()) for part in parts)


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_tensors(file, {"rows": torch.zeros(4, 3)})
    (stored,) = stored_tensors(file)
    with pytest.raises(UserError, match=r"'rows' has rows of shape \[3\], expected \[2\]"):
        read_rows(file, stored, 0, torch.zeros(4, 2))
    with pytest.raises(UserError, match="ends before its last row"):
        read_rows(file, stored, 1, torch.zeros(4, 3))
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(UserError, match="is no safetensors file"):
        stored_tensors(file)


def test_a_lack_of_memory_names_what_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch, "empty", empty)
    whole = Snapshot(None, {"w": torch.ones(2)}, {})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no host memory for .* set checkpoint\.background=false"):
        HostCopy().take(whole)
