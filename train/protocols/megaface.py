"""Protocol megaface: is a mate found among up to a million distractors (Kemelmacher-Shlizerman et
al., "The MegaFace Benchmark", CVPR 2016), raw or without InsightFace's lists of noise.

Shapes: Q probes, K distractors, D the embedding.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.identification import cmc, pair_ranks
from manyfaces.train.evaluation.nearest import Floats, exact_search, unit
from manyfaces.train.evaluation.result import Curve, Quantity, Result
from manyfaces.train.protocols.labelled import Labelled, open_distractors, open_labelled
from manyfaces.train.protocols.lists import OverLists

_RANKS = (1, 10)
_CMC_RANKS = 50
_SIZES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
_NOISE = 0.001
_PROBES = 0


class MegaFace(OverLists):
    """Of each ordered pair of two images of a person, the first is the probe and the second is
    ranked among all distractors; every pair counts alike.

    With lists of noise, a noisy probe is replaced as InsightFace's `remove_noises.py` does it: by
    the sum of the person's other unit embeddings plus uniform noise of up to 0.001 (drawn from a
    fixed seed), of length 1; and noisy distractors, to which that adds a number that keeps them
    from ever matching, are left out. Raises `UserError` for lists that cannot be read and for a
    person without a clean image.
    """

    def __init__(
        self,
        probes: str,
        distractors: Sequence[str],
        probe_noise: str | None = None,
        distractor_noise: str | None = None,
        flip: Flip = "sum",
    ) -> None:
        super().__init__([open_labelled(probes), *map(open_distractors, distractors)], flip)
        self._noisy = [
            *_noisy(self.lists[:1], 1, probe_noise),
            *_noisy(self.lists[1:], 3, distractor_noise),
        ]
        self._check_probes(probes)
        kept = sum(int((~noisy).sum()) for noisy in self._noisy[1:])
        kind = "raw" if probe_noise is None else "(R)efined"
        self.quantities = [
            Quantity(
                f"rank{rank}",
                f"rank-{rank} of {kept:,} distractors (MegaFace, {kind})",
                f"rank-{rank}, {kind}",
            )
            for rank in _RANKS
        ]

    def _check_probes(self, where: str) -> None:
        held, noisy_Q = self.lists[_PROBES], self._noisy[_PROBES]
        if np.bincount(held.code_N).max() < 2:
            raise UserError(f"{where}: no person has two images; one is searched for by the other")
        clean = np.bincount(held.code_N[~noisy_Q], minlength=len(held.identities))
        if not clean.all():
            name = held.identities[int(clean.argmin())]
            raise UserError(f"{where}: all images of {name} are in the list of noise; leave it out")

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        self.check_widths(embeddings_ND)
        code_Q = self.lists[_PROBES].code_N
        probes_QD = self._clean_probes(self.unit_rows(embeddings_ND, _PROBES))
        total = sum(int((~noisy).sum()) for noisy in self._noisy[1:])
        sizes = [size for size in _SIZES if size < total]
        advance = self.advance(sum(sizes) + total)
        by_size = []
        for size in sizes:
            first_ones = self._first_distractors(embeddings_ND, size)
            best = exact_search(probes_QD, first_ones, 1, advance).scores_QK
            by_size += cmc(pair_ranks(probes_QD, code_Q, best), [1])
        distractors = self._distractors(embeddings_ND)
        found = exact_search(probes_QD, distractors, _CMC_RANKS, advance)
        ranks = pair_ranks(probes_QD, code_Q, found.scores_QK)
        shares = cmc(ranks, range(1, found.scores_QK.shape[1] + 1))
        sizes, by_size = [*sizes, total], [*by_size, shares[0]]
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={f"rank{rank}": shares[min(rank, len(shares)) - 1] for rank in _RANKS},
            counts={
                "probes": len(code_Q),
                "pairs": len(ranks),
                "distractors": total,
                "noisy_probes": int(self._noisy[_PROBES].sum()),
                "noisy_distractors": sum(int(noisy.sum()) for noisy in self._noisy[1:]),
            },
            curves={
                "cmc": Curve(
                    f"{self.name}: {total:,} distractors",
                    "rank",
                    "mates found",
                    np.arange(1, len(shares) + 1, dtype=np.float64),
                    np.array(shares),
                ),
                "distractors": Curve(
                    f"{self.name}: rank-1 by distractors, the first of the list",
                    "distractors",
                    "mates found first",
                    np.array(sizes, np.float64),
                    np.array(by_size),
                    log_x=True,
                ),
            },
            tables={
                "rank1_by_distractors": {
                    f"{size:,}": share for size, share in zip(sizes, by_size, strict=True)
                }
            },
        )

    def _clean_probes(self, unit_QD: Floats) -> Floats:
        code_Q, noisy_Q = self.lists[_PROBES].code_N, self._noisy[_PROBES]
        random = np.random.default_rng(0)
        clean_QD = unit_QD.copy()
        for row in np.flatnonzero(noisy_Q):
            total_D = unit_QD[(code_Q == code_Q[row]) & ~noisy_Q].sum(0, np.float64)
            noise_D = random.uniform(-_NOISE, _NOISE, len(total_D))
            clean_QD[row] = unit((total_D + noise_D)[None])[0]
        return clean_QD

    def _distractors(self, embeddings_ND: Floats) -> Iterator[Floats]:
        for number in range(1, len(self.lists)):
            first, noisy_N = 0, self._noisy[number]
            for block_ND in self.unit_blocks(embeddings_ND, number):
                yield block_ND[~noisy_N[first : first + len(block_ND)]]
                first += len(block_ND)

    def _first_distractors(self, embeddings_ND: Floats, size: int) -> Iterator[Floats]:
        for block_ND in self._distractors(embeddings_ND):
            yield block_ND[:size]
            size -= len(block_ND)
            if size <= 0:
                return


def _noisy(lists: Sequence[Labelled], parts: int, path: str | None) -> list[NDArray[np.bool_]]:
    """Which rows of each list are named in a list of noise, by the last parts of their names.
    Raises `UserError` where that cannot be read or names not one of them."""
    if path is None:
        return [np.zeros(len(held), bool) for held in lists]
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    words = (line.strip().split("\t")[-1] for line in lines if not line.startswith("#"))
    named = {_end(word, parts) for word in words if word}
    noisy = [
        np.array([_end(held.name(row), parts) in named for row in range(len(held))], bool)
        for held in lists
    ]
    if named and not any(each.any() for each in noisy):
        raise UserError(
            f"{path}: names not one of the images of {lists[0].where} (the list: {min(named)}; the "
            f"first image: {lists[0].name(0)})"
        )
    return noisy


def _end(name: str, parts: int) -> str:
    return "/".join(name.split("/")[-parts:])
