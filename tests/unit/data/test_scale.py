"""Nothing that is done at the start or for a batch grows with the number of samples.
`tests/bench/bench_scale.py` has the times."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from made_part import made_part

from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.dataset.index import write_index
from manyfaces.data.dataset.manifest import Shard
from manyfaces.data.orders.shuffle import Shuffle

ROWS, PER_SHARD = 3_000_000, 8192
LARGE = np.full(31_738, PER_SHARD)  # 260 million samples

LOOK = """
import json, sys
from pathlib import Path
import numpy as np
from manyfaces.data.dataset.dataset import open_part
from manyfaces.data.orders.shuffle import Shuffle

def memory(field, of_index):
    total = counted = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):
            counted = line.endswith("index.arrow") == of_index
        elif counted and line.startswith(field):
            total += int(line.split()[1]) << 10
    return total

before = memory("Private_", False)
dataset = open_part(sys.argv[1])
opened = memory("Rss:", True)
order = Shuffle(dataset, 0, 4)
for position in range(0, 10**10, 10**8 + 7):
    ids = order.ids(position, 1024)
ordered = memory("Rss:", True)
rows = [column[ids] for column in (dataset.shard_N, dataset.offset_N, dataset.size_N, dataset.identity_N)]
print(json.dumps({
    "private": memory("Private_", False) - before, "opened": opened, "ordered": ordered,
    "pandas": "pandas" in sys.modules, "labels": rows[3].tolist() == [n * 7 % 1000 for n in ids.tolist()],
}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index without shards."""
    path = tmp_path_factory.mktemp("large")
    number = np.arange(ROWS)
    columns = {
        "shard": number // PER_SHARD,
        "offset": number % PER_SHARD * 6144,
        "size": number % 6000,
        "identity": number * 7 % 1000,
    }
    counts = np.bincount(columns["shard"]).tolist()
    shards = [
        Shard(name=f"{n}.tar", bytes=6144 * count, samples=count, sha256=f"{n:064x}")
        for n, count in enumerate(counts)
    ]
    write_index(path, columns, shards, num_identities=1000, image_px=(112, 112))
    return path


def test_a_process_takes_little_memory_and_reads_only_what_it_needs(large: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(large)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["labels"]
    assert found["private"] < 50e6
    assert not found["pandas"]  # 30 MB of each process
    # Of 20 bytes a row at most the column of shards; the kernel may map up to 2 MB on each side of
    # what is read.
    assert found["opened"] <= 4 * ROWS + 4e6
    assert found["ordered"] == found["opened"]


def test_ids_at_any_position_take_the_memory_of_windows() -> None:
    order = Shuffle(made_part(LARGE), 0, 16)
    tracemalloc.start()
    try:
        for position in (0, 10**8, 10**11, 10**11 + 10**7):
            assert len(np.unique(order.ids(position, 4096) // PER_SHARD)) <= 32
        assert tracemalloc.get_traced_memory()[1] < 20e6  # of 2 GB that an epoch's ids are
    finally:
        tracemalloc.stop()


def test_batches_of_a_window_share_its_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    from manyfaces.configs import rng

    lengths: list[int] = []
    permutation = rng.permutation
    monkeypatch.setattr(
        rng,
        "permutation",
        lambda key, length: lengths.append(length) or permutation(key, length),
    )
    order = Shuffle(made_part(LARGE), 0, 16)
    for position in range(0, 3 * 16 * PER_SHARD, 1024):
        order.ids(position, 1024)
    assert lengths == [len(LARGE), *[16 * PER_SHARD] * 3]


def test_shards_are_counted_once(large: Path) -> None:
    dataset = open_part(large)
    assert dataset.samples_per_shard is dataset.samples_per_shard
