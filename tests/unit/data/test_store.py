"""Samples are read from shards that may be cut short, or be on a disk that fails, at any time."""

import errno
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from manyfaces.configs.errors import UserError
from manyfaces.configs.schema import Data
from manyfaces.data.dataset.check import check
from manyfaces.data.dataset.dataset import Dataset, open_dataset, open_part
from manyfaces.data.dataset.part import Part
from manyfaces.data.dataset.verify import verify
from manyfaces.data.feed.loader import Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.store import samples
from manyfaces.data.store.samples import Store, Stores

LAST = "shard-000003.tar"


@pytest.fixture
def part(dataset_path: Path, tmp_path: Path) -> Part:
    return open_part(Path(shutil.copytree(dataset_path, tmp_path / "copy")))


@pytest.fixture
def last_row(part: Part) -> int:
    return part.manifest.num_images - 1


def test_a_shard_cut_short_while_it_is_read_names_shard_and_sample(
    part: Part, last_row: int
) -> None:
    """A view of a mapped file ends the process by SIGBUS, when it is looked at."""
    store, name = Store(part), part.name(last_row)
    store.read([last_row])
    os.truncate(part.path / LAST, int(part.offset_N[last_row]) + 100)
    with pytest.raises(UserError) as error:
        store.read([last_row])
    size = int(part.size_N[last_row])
    assert str(error.value) == (
        f"{part.path / LAST}: cannot be read at sample {name} (cut short: 100 of its {size:,} bytes "
        "are there); restore it and run the same command again to resume"
    )
    os.truncate(part.path / LAST, 0)
    with pytest.raises(UserError, match=rf"{LAST}:sample {last_row} \(cut short: 0 of its"):
        store.read([last_row])


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_names_shard_and_sample(
    part: Part, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, name = Store(part), part.name(3)
    store.read([3])

    def fails(*_: int) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(
        UserError, match=rf"shard-000000\.tar: .* {name} \({os.strerror(code)}\); restore it"
    ):
        store.read([3])


def test_short_reads_are_completed(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pread = Store(part).read(range(40)), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, 777), at))
    assert all(map(np.array_equal, Store(part).read(range(40)), whole))


def shards_open(part: Part) -> int:
    """How many of this part's shards this process has open.

    Other files of the process do not count: the garbage collector closes what earlier tests left
    open at any moment.
    """
    opened = (file.readlink() for file in Path("/proc/self/fd").iterdir() if file.is_symlink())
    return sum(1 for target in opened if target.is_relative_to(part.path.resolve()))


def test_few_shards_are_open_at_a_time(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_files_at_a_time", lambda: 2)
    stores = Stores(Dataset.of_part(part))
    everything = stores.read(np.arange(part.manifest.num_images))
    assert shards_open(part) == 2
    assert [len(blob) for blob in everything] == part.size_N.tolist()
    stores.close()
    assert shards_open(part) == 0


def test_the_shard_that_was_not_read_for_the_longest_time_is_closed(part: Part) -> None:
    store = Store(part, max_open=2)
    first = [int(np.flatnonzero(part.shard_N == shard)[0]) for shard in range(3)]
    store.read([first[0], first[1], first[0]])
    kept = store._files[0]
    store.read([first[2], first[0]])
    assert list(store._files) == [2, 0]
    assert store._files[0] is kept


@pytest.mark.parametrize(
    ("soft", "hard", "allowed", "files"),
    [
        (1024, 1 << 20, True, 1024),
        (1024, resource.RLIM_INFINITY, True, 1024),
        (1024, 2048, True, 512),
        (1024, 1 << 20, False, 256),
        (1 << 20, 1 << 20, True, 1024),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, True, 1024),
    ],
)
def test_a_process_may_open_more_files_where_the_system_lets_it(
    soft: int, hard: int, allowed: bool, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [soft, hard]

    def set_limits(_: int, wanted: tuple[int, int]) -> None:
        if not allowed:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        assert soft < wanted[0] <= 4096
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    assert samples._files_at_a_time() == files
    assert limits[1] == hard


def test_batches_before_the_loss_are_still_given(part: Part, tmp_path: Path) -> None:
    """The loop saves a checkpoint behind them."""
    dataset = open_dataset(part.path)
    loader = Loader(
        dataset,
        Data(prefetch_batches=1),
        seed=0,
        batch_size=8,
        rank=0,
        world_size=1,
        position=0,
        end=10**6,
        device=torch.device("cpu"),
        quarantine=Quarantine(tmp_path / "quarantine.jsonl", dataset, 0.0),
    )
    given = list[int]()

    def read_on() -> None:
        for batch in loader:
            given.append(batch.position)
            if len(given) == 3:
                for shard in part.path.glob("*.tar"):
                    os.truncate(shard, 1000)

    with loader, pytest.raises(UserError, match=r"\.tar: cannot be read at sample shard-"):
        read_on()
    assert given == list(range(0, 8 * len(given), 8))
    assert len(given) >= 3
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_a_check_tells_what_the_disk_does_not_give(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, bad = os.pread, int(part.offset_N[1])

    def fails(file: int, size: int, at: int) -> bytes:
        if at == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(file, size, at)

    monkeypatch.setattr(os, "pread", fails)
    faults = check(part, processes=1)
    assert {fault["reason"] for fault in faults} == {"cannot be read (Input/output error)"}
    assert 1 in [fault["sample"] for fault in faults]


def test_a_shard_that_cannot_be_hashed_is_listed(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    real = verify.__globals__["file_sha256"]
    monkeypatch.setitem(
        verify.__globals__, "file_sha256", lambda p: fails(p) if p.suffix == ".tar" else real(p)
    )
    with pytest.raises(UserError, match=r"shard-000000\.tar: cannot be read \(Input/output error"):
        verify(part, "hashes")
