import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.models import sampling
from manyfaces.models.sampling import BLOCK

classes = st.integers(1, 40_000)
rates = st.one_of(st.just(0.0), st.floats(0.001, 0.999))
positions = st.integers(0, 2**40)


def parts(num_classes: int, world_size: int) -> list[tuple[int, int]]:
    part = -(-num_classes // world_size)
    return [(min(r * part, num_classes), min((r + 1) * part, num_classes)) for r in range(world_size)]


@given(classes, rates, positions, st.integers(1, 9), st.data())
def test_ranks_together_choose_what_one_would(num_classes: int, rate: float, position: int, world_size: int, data: st.DataObject) -> None:
    labels_B = torch.tensor(data.draw(st.lists(st.integers(-1, num_classes - 1), max_size=20)), dtype=torch.int64)
    whole = sampling.choose(num_classes, 0, num_classes, rate, 5, position, labels_B)
    chosen = [sampling.choose(num_classes, lo, hi, rate, 5, position, labels_B) for lo, hi in parts(num_classes, world_size)]
    for ids, (lo, hi) in zip(chosen, parts(num_classes, world_size), strict=True):
        assert ids.numel() == 0 or (lo <= ids.min() and ids.max() < hi)
    torch.testing.assert_close(torch.cat(chosen), whole)
    expected = {int(label) for label in labels_B if label >= 0}
    for block in sampling.blocks(num_classes, rate, 5, position):
        expected |= set(range(block * BLOCK, min((block + 1) * BLOCK, num_classes)))
    assert whole.tolist() == sorted(expected)


@given(classes, rates, positions)
def test_blocks_are_as_many_as_asked_and_distinct(num_classes: int, rate: float, position: int) -> None:
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
        ids = sampling.choose(num_classes, lo, hi, rate, 5, position, none)
        assert abs(len(ids) - rate * (hi - lo)) <= 3 * BLOCK


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
def test_every_block_has_the_same_chance(rate: float) -> None:
    total, draws = 37, 4000
    counts = np.zeros(total)
    for position in range(draws):
        counts[sampling.blocks(total * BLOCK - 5, rate, 11, position * 128)] += 1
    share = round(rate * total) / total
    np.testing.assert_allclose(counts / draws, share, atol=5 * (share * (1 - share) / draws) ** 0.5)


def test_draws_differ_by_seed_and_position() -> None:
    draws = {tuple(sampling.blocks(50_000, 0.1, seed, position)) for seed in range(4) for position in range(0, 1024, 128)}
    assert len(draws) == 32


def test_rate_one_chooses_all_without_naming_them() -> None:
    labels_B = torch.tensor([3, -1, 99])
    assert sampling.choose(100, 0, 50, 1.0, 5, 0, labels_B) is None
    assert sampling.chunks(None, 50, 20) == [slice(0, 20), slice(20, 40), slice(40, 50)]
    assert sampling.chunks(None, 0, 20) == []


def test_chunks_cover_the_chosen() -> None:
    ids = torch.arange(0, 90, 2)
    chunks = sampling.chunks(ids, 100, 16)
    assert [len(part) for part in chunks] == [16, 16, 13]
    torch.testing.assert_close(torch.cat(chunks), ids)
    assert sampling.chunks(ids[:0], 100, 16) == []
