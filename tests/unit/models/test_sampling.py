import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.models.head import sampling
from manyfaces.models.head.sampling import BLOCK, Columns

classes = st.integers(1, 40_000)
rates = st.one_of(st.just(0.0), st.floats(0.001, 0.999))
positions = st.integers(0, 2**40)


def parts(num_classes: int, world_size: int) -> list[tuple[int, int]]:
    part = -(-num_classes // world_size)
    return [
        (min(r * part, num_classes), min((r + 1) * part, num_classes)) for r in range(world_size)
    ]


def choose(
    num_classes: int,
    lo: int,
    hi: int,
    rate: float,
    position: int,
    labels_B: torch.Tensor,
    size: int = 100,
) -> Columns:
    return sampling.choose(num_classes, lo, hi, rate, 5, position, labels_B).columns(size)


def class_of_each_column(columns: Columns, lo: int, hi: int) -> list[int]:
    """-1 for columns that are no class."""
    found: list[int] = []
    for chunk in columns.chunks:
        assert chunk.first == len(found)
        ids = (
            chunk.ids
            if isinstance(chunk.ids, torch.Tensor)
            else torch.arange(chunk.ids.start, chunk.ids.stop)
        )
        assert len(ids) == len(chunk) <= 100
        excluded = (
            torch.zeros(len(ids), dtype=torch.bool)
            if chunk.excluded_n is None
            else chunk.excluded_n
        )
        assert (ids[excluded] == hi - lo).all()
        found += torch.where(excluded, -1, ids + lo).tolist()
    return found


@given(classes, st.one_of(rates, st.just(1.0)), positions, st.integers(1, 9), st.data())
def test_ranks_together_choose_what_one_would(
    num_classes: int, rate: float, position: int, world_size: int, data: st.DataObject
) -> None:
    labels_B = torch.tensor(
        data.draw(st.lists(st.integers(-1, num_classes - 1), max_size=20)), dtype=torch.int64
    )
    chosen: list[int] = []
    for lo, hi in parts(num_classes, world_size):
        columns = choose(num_classes, lo, hi, rate, position, labels_B)
        found = class_of_each_column(columns, lo, hi)
        for label, column in zip(labels_B.tolist(), columns.targets_B.tolist(), strict=True):
            assert (found[column] if column >= 0 else None) == (label if lo <= label < hi else None)
        chosen += [i for i in found if i != -1]
    expected = {int(label) for label in labels_B if label >= 0}
    for block in sampling.blocks(num_classes, rate, 5, position):
        expected |= set(range(block * BLOCK, min((block + 1) * BLOCK, num_classes)))
    assert sorted(chosen) == sorted(expected)  # each once


@given(classes, rates, positions)
def test_blocks_are_as_many_as_asked_and_distinct(
    num_classes: int, rate: float, position: int
) -> None:
    total = -(-num_classes // BLOCK)
    drawn = sampling.blocks(num_classes, rate, 5, position)
    assert len(drawn) == (max(1, round(rate * total)) if rate else 0)
    assert (np.diff(drawn) > 0).all()
    assert len(drawn) == 0 or (drawn[0] >= 0 and drawn[-1] < total)


@given(st.integers(1, 9), st.floats(0.02, 0.98), positions)
def test_ranks_are_balanced(world_size: int, rate: float, position: int) -> None:
    num_classes = 100_000
    none = torch.empty(0, dtype=torch.int64)
    for lo, hi in parts(num_classes, world_size):
        count = sum(map(len, choose(num_classes, lo, hi, rate, position, none).chunks))
        assert abs(count - rate * (hi - lo)) <= 3 * BLOCK


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_every_block_has_the_same_chance(rate: float) -> None:
    total, draws = 37, 4000
    counts = np.zeros(total)
    for position in range(draws):
        counts[sampling.blocks(total * BLOCK - 5, rate, 11, position * 128)] += 1
    share = round(rate * total) / total
    np.testing.assert_allclose(counts / draws, share, atol=5 * (share * (1 - share) / draws) ** 0.5)


def test_draws_differ_by_seed_and_position() -> None:
    draws = {
        tuple(sampling.blocks(50_000, 0.1, seed, position))
        for seed in range(4)
        for position in range(0, 1024, 128)
    }
    assert len(draws) == 32


def test_rate_one_chooses_all_without_naming_them() -> None:
    columns = choose(100, 0, 50, 1.0, 0, torch.tensor([3, -1, 99]), size=20)
    assert [chunk.ids for chunk in columns.chunks] == [slice(0, 20), slice(20, 40), slice(40, 50)]
    assert columns.targets_B.tolist() == [3, -1, -1]
    assert choose(100, 50, 50, 1.0, 0, torch.tensor([3])).chunks == []
