"""The copy of rows that change meanwhile against a clone that was made between two steps: bit for
bit the same, whoever copies what and when."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.schema import Config
from manyfaces.models.head import row_optimizers
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.train.checkpoint import copy_on_write
from manyfaces.train.checkpoint.copy_on_write import RowsCopy
from manyfaces.train.checkpoint.snapshot import HostCopy, Snapshot
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.objectives.objective import HeldByRank0, ShardedRows

N, DIM = 41, 3
C, D, B = 400, 8, 14
STATE = RunState(Config(model=MobileFaceNet()), "", C, seed=0)
GONE = torch.arange(0, C, 7)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of a few rows, one copied at a time, and threads that take turns often."""
    monkeypatch.setattr(copy_on_write, "BLOCK_ROWS", 4)
    monkeypatch.setattr(copy_on_write, "TOGETHER_BYTES", 1)
    monkeypatch.setattr(row_optimizers, "LONGEST_HISTORY", 3)
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    torch.set_num_threads(1)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


def some_rows(n: int) -> list[Tensor]:
    """Of several dtypes and shapes, some of whose bits are no numbers."""
    random = torch.Generator().manual_seed(n)
    bits = torch.randint(-(2**31), 2**31 - 1, (n, DIM), generator=random, dtype=torch.int32)
    return [
        bits.view(torch.float32),
        bits.to(torch.int16).view(torch.bfloat16),
        bits[:, 0].clone().view(torch.float32),
        bits.long(),
        bits > 0,
    ]


def change(rows: list[Tensor], ids: slice | Tensor) -> None:
    """Every bit of these rows becomes another one."""
    here = ids if isinstance(ids, slice) else ids[ids < len(rows[0])].numpy()
    for tensor in rows:
        bits = tensor.view(torch.int16 if tensor.dtype == torch.bfloat16 else tensor.dtype).numpy()
        bits = bits if bits.dtype == np.bool_ else bits.view(f"i{bits.itemsize}")
        bits[here] = ~bits[here]


def same(left: Tensor, right: Tensor) -> bool:
    """Bit for bit, whatever numbers those are."""
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    width = widths[left.element_size()]
    return torch.equal(left.contiguous().view(width), right.contiguous().view(width))


IDS = st.one_of(
    st.tuples(st.integers(0, N + 5), st.integers(0, N + 5)).map(lambda ends: slice(*ends)),
    st.lists(st.integers(0, N), unique=True, max_size=N).map(
        lambda ids: torch.tensor(ids, dtype=torch.int64)
    ),
)


@settings(max_examples=100, deadline=None)
@given(
    n=st.sampled_from([0, 1, 4, N]),
    before=st.lists(IDS, max_size=5),
    after=st.lists(IDS, max_size=3),
)
def test_rows_are_copied_as_they_were(
    n: int, before: list[slice | Tensor], after: list[slice | Tensor]
) -> None:
    live = some_rows(n)
    expected = [tensor.clone() for tensor in live]
    copies = [torch.zeros_like(tensor) for tensor in live]
    copy = RowsCopy(live, copies)
    for ids in before:
        copy.before_change(ids)
        change(live, ids)
    copy.copy_all()
    for ids in after:
        copy.before_change(ids)
        change(live, ids)
    assert all(same(*pair) for pair in zip(copies, expected, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_threads_that_change_and_copy_at_once(seed: int) -> None:
    """Four threads change rows of their own, whose blocks they share, and one copies all."""
    live = some_rows(400)
    expected = [tensor.clone() for tensor in live]
    copies = [torch.zeros_like(tensor) for tensor in live]
    copy, begin = RowsCopy(live, copies), threading.Barrier(5)

    def changes(first: int) -> None:
        own = np.random.default_rng([seed, first]).permutation(np.arange(first, 400, 4))
        begin.wait()
        for ids in torch.from_numpy(own).split(3):
            copy.before_change(ids)
            change(live, ids)

    def copies_all() -> None:
        begin.wait()
        copy.copy_all()

    with ThreadPoolExecutor(5) as pool:
        jobs = [pool.submit(changes, first) for first in range(4)] + [pool.submit(copies_all)]
        for job in jobs:
            job.result()
    assert all(same(*pair) for pair in zip(copies, expected, strict=True))
    assert not any(same(*pair) for pair in zip(live, expected, strict=True))


class Setting(NamedTuple):
    rows: schema.Rows
    rate: float
    sub_centers: int
    placement: str


ROWS = [
    schema.Rows(),
    schema.Rows(dtype="float16", momentum=0.0),
    schema.Rows(lazy_decay=True),
    schema.Rows(lazy_decay=True, dtype="bfloat16"),
    schema.Rows(optimizer="adamw", lr_scale=0.05),
    schema.Rows(optimizer="rowwise"),
    schema.Rows(optimizer="rowwise", dtype="float16"),
    schema.Rows(optimizer="rowwise", dtype="float8"),
]
SETTINGS = [
    Setting(rows, rate, 1 + (i + (rate < 1)) % 2, placement)
    for i, rows in enumerate(ROWS)
    for rate, placement in ((1.0, "device"), (0.2, "device"), (0.2, "host"))
]


def named(setting: Setting) -> str:
    rows = setting.rows
    lazy = " lazy" * rows.lazy_decay
    return f"{rows.optimizer}{lazy} {rows.dtype} {setting.rate} {setting.placement}"


class Trained:
    """A head and what trains it."""

    def __init__(self, setting: Setting, seed: int = 1) -> None:
        tree: dict[str, Any] = {"margin": {"kind": "arcface"}, "scale": 16, "chunk_classes": 50}
        tree |= {
            "rows": setting.rows,
            "sample_rate": setting.rate,
            "sub_centers": setting.sub_centers,
            "placement": setting.placement,
        }
        config = schema.Head.model_validate(tree)
        device = torch.device("cpu")
        self.head = PartialFC(config, C, D, seed=seed, weight_decay=0.02, device=device)
        self.number = 0

    def step(self, *, prefetch: bool) -> None:
        random = torch.Generator().manual_seed(self.number)
        embeddings_BD = torch.randn(B, D, generator=random)
        labels_B = torch.randint(0, C, (B,), generator=random)
        labels_B[torch.isin(labels_B, GONE)] = -1
        if prefetch:
            self.head.prefetch(self.number * B, B)
        self.head.step(embeddings_BD, labels_B, lr=0.5, position=self.number * B, batch_size=B)
        self.number += 1

    def part(self) -> ShardedRows:
        return ShardedRows(self.head.tensors(), C, self.head.watch)


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_a_snapshot_is_the_state_between_two_steps(setting: Setting) -> None:
    """Of two heads, with what a step changes by itself, by the lazy decay that it catches up or
    brings to all rows, and by classes that are forgotten; the copy is finished after some steps,
    or by a thread beside them."""
    heads = [Trained(setting), Trained(setting, seed=2)]
    host = HostCopy()
    for steps_before_the_end in (0, 1, 4, None):
        for trained in heads:
            trained.step(prefetch=True)
            trained.step(prefetch=False)
        parts = {str(number): trained.part() for number, trained in enumerate(heads)}
        weights = torch.randn(3)
        parts_and_mean = parts | {"mean": HeldByRank0({"mean": weights})}
        snapshot = Snapshot(STATE, {"w": weights}, {"m": weights}, parts_and_mean)
        expected = {name: tensor.clone() for name, tensor in snapshot.tensors}
        finish = host.begin(snapshot)
        weights += 1
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(finish) if steps_before_the_end is None else None
            for step in range(4):
                if step == steps_before_the_end:
                    beside = pool.submit(finish)
                    beside.result()
                for trained in heads:
                    if (steps_before_the_end, step) == (1, 0):
                        trained.head.forget(GONE)
                    trained.step(prefetch=step % 2 == 0)
                    if step == 3:
                        trained.head.tensors()  # has all rows brought up to date
            copied = finish() if beside is None else beside.result()
        found = dict(copied.tensors)
        assert found.keys() == expected.keys()
        assert all(same(found[name], tensor) for name, tensor in expected.items())
        for number, trained in enumerate(heads):
            assert not same(trained.head.tensors()["rows"], expected[f"{number}: rows"])
            assert all(rows.before_change is None for rows in trained.head.sub_centers)


def test_nobody_waits_for_a_copy_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the steps nor the next snapshot, and all rows are left alone by the failed one."""
    trained = Trained(SETTINGS[0])
    host, parts = HostCopy(), {"head": trained.part(), "too": trained.part()}
    finish = host.begin(Snapshot(STATE, {}, {}, parts))

    def broken(*_: object) -> None:
        raise OSError("no more")

    with monkeypatch.context() as patched:
        patched.setattr(copy_on_write.np, "copyto", broken)
        with pytest.raises(OSError, match="no more"):
            finish()
    trained.step(prefetch=False)
    assert trained.head.sub_centers[0].before_change is None
    snapshot = Snapshot(STATE, {}, {}, {"head": trained.part()})
    expected = {name: tensor.clone() for name, tensor in snapshot.tensors}
    finish = host.begin(snapshot)
    trained.step(prefetch=False)
    assert all(same(tensor, expected[name]) for name, tensor in finish().tensors)
