"""Counter-based randomness: against the published splitmix64, and stable for ever."""

import numpy as np

from manyfaces.configs import rng


def test_mix_is_splitmix64() -> None:
    """Written out with Python's integers; the first outputs for seed 0 are the reference
    implementation's."""

    def plain(state: int) -> int:
        mask = 2**64 - 1
        z = (state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    states = np.random.default_rng(0).integers(0, 2**64, 100, dtype=np.uint64)
    assert rng.mix(states).tolist() == [plain(int(s)) for s in states]
    assert int(rng.mix(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF


def test_uniform_is_uniform_and_independent_of_how_it_is_cut() -> None:
    u = rng.uniform(rng.key(1, 2), np.arange(100_000, dtype=np.uint64))
    assert u.min() >= 0
    assert u.max() < 1
    assert np.abs(np.histogram(u, 20, (0, 1))[0] / 5000 - 1).max() < 0.06
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01
    assert np.array_equal(
        u[500:600], rng.uniform(rng.key(1, 2), np.arange(500, 600, dtype=np.uint64))
    )


def test_keys_tell_their_numbers_and_order_apart() -> None:
    keys = {rng.key(*numbers) for numbers in [(), (0,), (0, 0), (1, 2), (2, 1), (1, 2, 3)]}
    assert len(keys) == 6


def test_permutations_are_permutations_and_stable_over_versions() -> None:
    assert sorted(rng.permutation(5, 1000)) == list(range(1000))
    assert rng.permutation(rng.key(0), 10).tolist() == GOLDEN


GOLDEN = [6, 4, 7, 3, 8, 1, 2, 0, 5, 9]
