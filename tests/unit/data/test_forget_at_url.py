"""What is forgotten at a URL: of requests at once none is lost, and none waits for ever."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Data
from manyfaces.data.dataset import forget as module
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.forget import FORGOTTEN_LOCK, forget
from manyfaces.data.dataset.forgotten import read_forgotten_part
from manyfaces.data.dataset.manifest import FORGOTTEN, INDEX, MANIFEST
from manyfaces.data.dataset.part import Part
from manyfaces.data.store import lock

URL = "memory://faces"
FAR = fsspec.filesystem("memory")


@pytest.fixture
def far(dataset_path: Path, tmp_path: Path) -> Iterator[Data]:
    """How two nodes open a dataset in the memory's store."""
    for name in (MANIFEST, INDEX):
        FAR.pipe_file(f"/faces/{name}", (dataset_path / name).read_bytes())
    yield Data(cache_dir=str(tmp_path / "cache"), store_patience_s=2)
    FAR.rm("/faces", recursive=True)


def opened(far: Data, node: str) -> Part:
    return open_part(URL, far.model_copy(update={"cache_dir": f"{far.cache_dir}/{node}"}))


def at_url() -> list[str]:
    return sorted(os.path.basename(path) for path in FAR.ls("/faces", detail=False))  # noqa: PTH119


def test_of_two_requests_from_two_nodes_none_is_lost(
    far: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have opened the dataset before; the second begins while the first is between reading and
    writing."""
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    here, there = opened(far, "here"), opened(far, "there")
    real, first_is_in, second_waits = module.parse_forgotten, threading.Event(), threading.Event()

    def slow(*args):
        known = real(*args)
        if not first_is_in.is_set():
            first_is_in.set()
            assert second_waits.wait(10)
        return known

    monkeypatch.setattr(module, "parse_forgotten", slow)
    first = threading.Thread(target=forget, args=(here, ["3"], [], 1))
    first.start()
    assert first_is_in.wait(10)
    second = threading.Thread(target=forget, args=(there, ["5"], [], 1))
    second.start()
    second.join(0.2)
    second_waits.set()
    first.join(10)
    second.join(10)
    assert read_forgotten_part(there).identities.tolist() == [3, 5]
    assert read_forgotten_part(opened(far, "here")).identities.tolist() == [3, 5]
    assert FORGOTTEN_LOCK not in at_url()


def test_what_another_writes_without_the_lock_is_merged(
    far: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, real = opened(far, "here"), module.Remote.write
    others = iter([["7"], []])

    def write(remote, name: str, body: bytes) -> None:
        real(remote, name, body)
        if next(others):
            none = np.empty(0, np.int64)
            told = module._body(part, module.Forgotten(none, np.array([7])))
            real(remote, name, told.encode())

    monkeypatch.setattr(module.Remote, "write", write)
    assert forget(part, ["3"], [], 1).identities.tolist() == [3, 7]
    assert read_forgotten_part(opened(far, "there")).identities.tolist() == [3, 7]


def test_a_lock_that_was_left_behind_is_removed_and_one_that_is_held_is_told(
    far: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = opened(far, "here")
    FAR.pipe_file(f"/faces/{FORGOTTEN_LOCK}", b"node7 123 abc\n")
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    with pytest.raises(UserError, match=r"lock: held by another process \(node7 123\) for 2 s"):
        forget(part, ["3"], [], 1)
    assert FORGOTTEN not in at_url()
    monkeypatch.setattr(lock, "LEFT_BEHIND_S", 0.1)
    assert forget(part, ["3"], [], 1).identities.tolist() == [3]
    assert FORGOTTEN_LOCK not in at_url()


def test_a_url_that_is_read_only_is_told(far: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    part = opened(far, "here")
    monkeypatch.setattr(module, "Remote", lambda *_: SimpleNamespace(read_only=True))
    with pytest.raises(UserError, match="nothing can be written there; forget in a local copy"):
        forget(part, ["3"], [], 1)
