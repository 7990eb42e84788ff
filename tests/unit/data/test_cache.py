"""The node's cache: bounded, shared, whole after any kill; and batches that do not tell where their
shards were."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from store_server import Proxy, upload

from manyfaces.configs.orders.shuffle import Shuffle
from manyfaces.configs.schema import Data, UserError
from manyfaces.configs.transforms.flip import Flip
from manyfaces.configs.transforms.misalign import Misalign
from manyfaces.data.dataset.dataset import open_dataset
from manyfaces.data.dataset.manifest import Shard
from manyfaces.data.feed.loader import Loader
from manyfaces.data.feed.quarantine import Quarantine
from manyfaces.data.orders import shuffle
from manyfaces.data.store.cache import CachedShards, RemoteSource
from manyfaces.data.store.shard_cache import ShardCache, locked

SIZE, WINDOW = 50_000, 3
READER = """
import hashlib, json, sys, time
import numpy as np
from pathlib import Path
from manyfaces.data.store.cache import CachedShards, RemoteSource
from manyfaces.data.dataset.manifest import Shard
url, folder, limit, windows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
me, other = sys.argv[5:] if len(sys.argv) > 5 else ("", "")
shards = [Shard(**facts) for facts in json.loads((folder.parent / "shards.json").read_text())]
cache = CachedShards(RemoteSource(url, folder, limit, 20), shards)
for now, window in enumerate(windows):
    while other and now and not (folder / f"{other}-{now - 1}").exists():  # steps are collective: ranks are at most a window apart
        time.sleep(0.01)
    cache.need([np.array(w) for w in windows[now : now + 2]])
    (folder / f"{me}-{now}").touch()
    for shard in window:
        assert hashlib.sha256(cache.open(shard).read(0, 50_000)).hexdigest() == shards[shard].sha256
        time.sleep(0.01)
cache.close()
"""


@pytest.fixture
def shards(proxy: Proxy, tmp_path: Path) -> list[Shard]:
    """Twelve shards of random bytes at s3://faces/random."""
    proxy.put("/faces")
    made = []
    for number in range(12):
        body = np.random.default_rng(number).bytes(SIZE)
        proxy.put(f"/faces/random/{number:02}.tar", body)
        made.append(
            Shard(
                name=f"{number:02}.tar",
                bytes=SIZE,
                samples=1,
                sha256=hashlib.sha256(body).hexdigest(),
            )
        )
    (tmp_path / "shards.json").write_text(json.dumps([dataclasses.asdict(s) for s in made]))
    return made


def source(tmp_path: Path, limit_shards: float, patience_s: float = 10) -> RemoteSource:
    return RemoteSource(
        "s3://faces/random", tmp_path / "cache", int(limit_shards * SIZE), patience_s
    )


def reader(
    tmp_path: Path, limit_shards: float, windows: list[list[int]], *ranks: str
) -> subprocess.Popen[bytes]:
    words = [
        "s3://faces/random",
        str(tmp_path / "cache"),
        str(int(limit_shards * SIZE)),
        json.dumps(windows),
        *ranks,
    ]
    return subprocess.Popen([sys.executable, "-c", READER, *words], stderr=subprocess.PIPE)


def ended_well(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said.decode()


def on_disk(folder: Path) -> int:
    total = 0
    for entry in os.scandir(folder / "shards"):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def until(true: Callable[[], bool], within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def windows_of(rng: np.random.Generator) -> list[list[int]]:
    """Two epochs."""
    return [
        window.tolist() for _ in range(2) for window in np.split(rng.permutation(12), 12 // WINDOW)
    ]


@pytest.fixture
def most_on_disk(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """Bytes that the folder held at most, looked at all the time."""
    most, over = [0], threading.Event()
    (tmp_path / "cache" / "shards").mkdir(parents=True)

    def watch() -> None:
        while not over.wait(0.001):
            most[0] = max(most[0], on_disk(tmp_path / "cache"))

    thread = threading.Thread(target=watch)
    thread.start()
    yield lambda: most[0]
    over.set()
    thread.join()


@pytest.mark.parametrize("limit_shards", [WINDOW, WINDOW + 1.5, 2 * WINDOW])
def test_the_bytes_on_disk_are_bounded(
    proxy: Proxy, shards, tmp_path: Path, limit_shards: float, most_on_disk
) -> None:
    cache = CachedShards(source(tmp_path, limit_shards), shards)
    windows = windows_of(np.random.default_rng(0))
    for now, window in enumerate(windows):
        cache.need([np.array(w) for w in windows[now : now + 2]])
        for shard in window:
            assert (
                hashlib.sha256(cache.open(shard).read(0, SIZE)).hexdigest() == shards[shard].sha256
            )
            time.sleep(0.01)
    cache.close()
    assert (
        SIZE * (int(limit_shards) - 1) <= most_on_disk() <= SIZE * limit_shards + 2000
    )  # what processes need is written there too
    assert len(proxy.gets) == 12
    assert not list((tmp_path / "cache" / "shards").glob(".needs*"))


def test_what_is_needed_next_is_fetched_before_it_is_asked_for(
    proxy: Proxy, shards, tmp_path: Path
) -> None:
    cache = CachedShards(source(tmp_path, 2 * WINDOW), shards)
    cache.need([np.array([5, 3, 1]), np.array([2, 4, 6])])
    until(lambda: len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 6)
    for shard in (5, 3, 1, 2, 4, 6):
        cache.open(shard)
    # A window on: what nobody needs goes, least recently needed first; what is needed stays.
    cache.need([np.array([2, 4, 6]), np.array([7, 8, 9])])
    until(lambda: all(cache._path(s).exists() for s in (2, 4, 6, 7, 8, 9)))
    cache.close()
    assert set(proxy.gets.values()) == {1}


def test_two_processes_fetch_each_shard_once(
    proxy: Proxy, shards, tmp_path: Path, most_on_disk
) -> None:
    """Ranks of one node, at most a window apart, through an epoch in a cache of three of its four
    windows."""
    windows = windows_of(np.random.default_rng(1))[:4]
    ranks = [reader(tmp_path, 3 * WINDOW, windows, *names) for names in ("ab", "ba")]
    for rank in ranks:
        ended_well(rank)
    assert set(proxy.gets.values()) == {1}
    assert len(proxy.gets) == 12
    assert most_on_disk() <= 3 * WINDOW * SIZE + 2000


def test_ranks_that_stand_in_different_windows_of_a_small_cache_get_on(
    proxy: Proxy, shards, tmp_path: Path, most_on_disk
) -> None:
    """It may fetch again; it may neither hold more than the bound nor wait for ever."""
    windows = windows_of(np.random.default_rng(2))
    ranks = [reader(tmp_path, WINDOW, windows[start:]) for start in (0, 1)]
    for rank in ranks:
        ended_well(rank)
    assert most_on_disk() <= WINDOW * SIZE + 2000


def test_a_fetcher_killed_in_the_middle(proxy: Proxy, shards, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "shards"
    proxy.faults["00.tar"] = ["slow"]
    killed = reader(tmp_path, WINDOW, [[0, 1, 2]])
    until(lambda: any(p.stat().st_size for p in folder.glob(f".{shards[0].sha256}*.part")), 20)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=10)
    assert list(folder.glob("*.part"))
    assert list(folder.glob(".needs*"))
    ended_well(reader(tmp_path, WINDOW, [[0, 1, 2], [3, 4, 5]]))
    assert proxy.gets["/faces/random/00.tar"] == 2
    assert not list(folder.glob("*.part"))
    assert not list(folder.glob(".needs*"))


def test_who_waits_for_a_killed_fetcher_takes_over(proxy: Proxy, shards, tmp_path: Path) -> None:
    proxy.faults["00.tar"] = ["slow"]
    killed = reader(tmp_path, WINDOW, [[0]])
    until(lambda: proxy.gets["/faces/random/00.tar"] == 1, 20)
    cache = CachedShards(source(tmp_path, WINDOW), shards)
    threading.Timer(0.3, killed.kill).start()
    began = time.monotonic()
    assert hashlib.sha256(cache.open(0).read(0, SIZE)).hexdigest() == shards[0].sha256
    assert time.monotonic() - began < 3
    killed.communicate(timeout=10)
    cache.close()
    assert proxy.gets["/faces/random/00.tar"] == 2


def test_a_shard_that_vanishes_is_told_when_it_is_needed(
    proxy: Proxy, shards, tmp_path: Path
) -> None:
    proxy.delete("/faces/random/04.tar")
    cache = CachedShards(source(tmp_path, 2 * WINDOW, patience_s=60), shards)
    cache.need([np.array([0, 1, 2]), np.array([3, 4, 5])])
    for shard in (0, 1, 2, 3, 5):
        cache.open(shard)
    with pytest.raises(
        UserError, match=r"s3://faces/random/04\.tar: FileNotFoundError.*; restore it"
    ):
        cache.open(4)
    proxy.put("/faces/random/04.tar", np.random.default_rng(4).bytes(SIZE))
    assert hashlib.sha256(cache.open(4).read(0, SIZE)).hexdigest() == shards[4].sha256
    cache.close()


def test_a_cached_shard_that_was_cut_short_is_fetched_anew(
    proxy: Proxy, shards, tmp_path: Path
) -> None:
    cache = CachedShards(source(tmp_path, WINDOW), shards)
    first = cache.open(0)
    os.truncate(cache._path(0), 100)
    assert len(first.read(0, SIZE)) == 100
    assert hashlib.sha256(cache.open(0).read(0, SIZE)).hexdigest() == shards[0].sha256
    cache.close()


def test_all_processes_of_a_node_have_one_patience(proxy: Proxy, shards, tmp_path: Path) -> None:
    """Each waits for the shard that another tries to fetch in vain: they may not try one after the
    other."""
    proxy.faults["00.tar"] = [503] * 1000
    caches = [CachedShards(source(tmp_path, WINDOW, patience_s=3), shards) for _ in range(4)]

    def told(cache: CachedShards) -> tuple[str, float]:
        began = time.monotonic()
        with pytest.raises(UserError) as error:
            cache.open(0)
        return str(error.value), time.monotonic() - began

    with ThreadPoolExecutor(4) as ranks:
        outcomes = list(ranks.map(told, caches))
    for message, took in outcomes:
        assert re.search(r"00\.tar: tried \d+ times in \d s .*Service Unavailable", message)
        assert 3 <= took < 5.5, (
            "no attempt of the first is later than 4 s; the others make one each"
        )
    for cache in caches:
        cache.close()


def test_closing_does_not_wait_for_a_store_that_is_away(
    proxy: Proxy, shards, tmp_path: Path
) -> None:
    with proxy.away(60):
        cache = CachedShards(source(tmp_path, 2 * WINDOW, patience_s=300), shards)
        cache.need([np.array([0, 1, 2])])
        time.sleep(0.5)
        began = time.monotonic()
        cache.close()
        assert time.monotonic() - began < 1
        assert not any(thread.is_alive() for thread in cache._threads)


def test_a_cache_that_others_fill_is_one_line(tmp_path: Path) -> None:
    """Another process fetches something as large as the bound, and never ends."""
    cache = ShardCache(tmp_path, 10, 0.1, threading.Event())
    other = threading.Event()
    holder = threading.Thread(
        target=lambda: ShardCache(tmp_path, 10, 0.1, threading.Event()).put(
            "aa", 10, lambda to, waited_s: other.wait() and None, None
        )
    )
    holder.start()
    until(lambda: bool(list(tmp_path.glob("*.part"))))
    cache.put("bb", 10, lambda to, waited_s: None, 0)  # ahead of need: left out
    with pytest.raises(
        UserError, match=r"full, or held by another process, for 0 s .*raise data\.cache_gb"
    ):
        cache.put("bb", 10, lambda to, waited_s: None, None)
    other.set()
    holder.join()


CONFIG = Data(augment=(Misalign(shift_px=2), Flip()), order=Shuffle(window_shards=2))


def batches(
    dataset, config: Data, folder: Path, position: int = 0, rank: int = 0, world: int = 1
) -> list:
    quarantine = Quarantine(folder / "quarantine.jsonl", dataset, 0.001)
    with Loader(
        dataset,
        config,
        seed=3,
        batch_size=24,
        rank=rank,
        world_size=world,
        position=position,
        end=10 * 24,
        device=torch.device("cpu"),
        quarantine=quarantine,
    ) as loader:
        return list(loader)


def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_supported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", not_supported)
    told = r"has no locks \(Operation not supported\), .* local disk$"
    with pytest.raises(UserError, match=told), locked(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("shards_in_cache", [2.2, 3, 9])
def test_batches_are_those_of_local_shards(
    proxy: Proxy, dataset_path: Path, dataset, tmp_path: Path, shards_in_cache: float
) -> None:
    """Two epochs of four shards in windows of two, with faults on the way."""
    url = upload(proxy, dataset_path, "faces", "made")
    largest = max(s.bytes for s in dataset.manifest.shards)
    config = CONFIG.model_copy(
        update={"cache_dir": str(tmp_path), "cache_gb": shards_in_cache * largest / 1e9}
    )
    proxy.faults = {
        "shard-000000.tar": [500, "cut off"],
        "shard-000003.tar": ["wrong bytes", "reset"],
    }
    remote = open_dataset(url, config)
    for ours, theirs in zip(
        batches(remote, config, tmp_path, 24), batches(dataset, CONFIG, tmp_path, 24), strict=True
    ):
        assert torch.equal(ours.images["main"], theirs.images["main"])
        assert torch.equal(ours.labels_N, theirs.labels_N)
    assert not any(proxy.faults.values())
    assert on_disk(tmp_path) <= shards_in_cache * largest
    if shards_in_cache == 9:
        assert [proxy.gets[f"/faces/made/shard-00000{n}.tar"] for n in range(4)] == [3, 1, 1, 3], (
            "once each, and once more for each fault"
        )


def test_a_store_that_is_gone_ends_the_batches_with_one_line(
    proxy: Proxy, dataset_path: Path, tmp_path: Path
) -> None:
    url = upload(proxy, dataset_path, "faces", "made")
    config = CONFIG.model_copy(update={"cache_dir": str(tmp_path), "store_patience_s": 1.0})
    remote = open_dataset(url, config)
    with (
        proxy.away(60),
        pytest.raises(
            UserError,
            match=r"shard-00000\d\.tar: tried \d+ times in \d s .*same command then resumes",
        ),
    ):
        batches(remote, config, tmp_path)


def test_the_order_tells_the_shards_of_its_windows(dataset) -> None:
    order = shuffle.Shuffle(dataset.part, 3, 3)
    position = 0
    for _ in range(5):  # windows of three and of one, two epochs and a half
        now, then = order.shards(position, 2)
        size = int(dataset.part.samples_per_shard[now].sum())
        assert set(dataset.part.shard_N[order.ids(position, size)].tolist()) == set(now.tolist())
        assert order.shards(position + size - 1, 1)[0].tolist() == now.tolist()
        position += size
        assert order.shards(position, 1)[0].tolist() == then.tolist()
