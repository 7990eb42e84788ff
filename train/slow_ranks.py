"""Which rank the others wait for in every step, by the time that each needs for itself."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SLOW, FAST = 1.5, 1.2
"""A rank becomes slow above the first multiple of the median, and keeps up again below the
second."""
SLOW_SHARE, FAST_SHARE = 0.1, 0.05
"""Only a rank that costs more than the first share of a whole step becomes slow; one that costs
less than the second keeps up again."""
WINDOWS, STEPS = 3, 20
"""Either is told only after so many rows of metrics one after another, with so many steps in
all."""

OwnTimes = Sequence[Mapping[str, float]]
"""For each rank, the seconds of a step in each part in which it waits for no other rank."""


@dataclass(frozen=True)
class Told:
    """A line for people, and the same for programs."""

    line: str
    facts: Mapping[str, Any]


@dataclass
class _Episode:
    """The windows in a row in which a rank was other than it was told to be."""

    windows: int = 0
    steps: int = 0
    own_s: float = 0.0
    """Its own time, as a sum over the steps; so are the other two."""
    median_s: float = 0.0
    excess_s: dict[str, float] = field(default_factory=dict)
    """How much longer than the median each of its parts took."""


def slowest(own: OwnTimes) -> tuple[int, float]:
    """The rank with the longest own time, and how many times the median that is. Of an even number
    of ranks the lower middle one is the median: of two, the other rank."""
    whole = [sum(parts.values()) for parts in own]
    rank = max(range(len(whole)), key=whole.__getitem__)
    return rank, whole[rank] / max(statistics.median_low(whole), 1e-9)


class SlowRanks:
    """Follows the ranks over windows of steps, and tells once when one has become slow, and once
    when it keeps up again. `nodes` are the ranks' host names."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = nodes
        self._is_slow = [False] * len(nodes)
        self._episodes = [_Episode() for _ in nodes]

    def look(self, steps: int, own: OwnTimes, step_s: float) -> list[Told]:
        """What is to be told after a window of this many steps, which took `step_s` seconds
        each."""
        whole = [sum(parts.values()) for parts in own]
        median_s = statistics.median_low(whole)
        part_medians = {
            part: statistics.median_low([each[part] for each in own]) for part in own[0]
        }
        told = []
        for rank, own_s in enumerate(whole):
            if self._is_slow[rank]:
                turns = own_s < FAST * median_s or own_s - median_s < FAST_SHARE * step_s
            else:
                turns = own_s > SLOW * median_s and own_s - median_s > SLOW_SHARE * step_s
            if not turns:
                self._episodes[rank] = _Episode()
                continue
            episode = self._episodes[rank]
            episode.windows, episode.steps = episode.windows + 1, episode.steps + steps
            episode.own_s += own_s * steps
            episode.median_s += median_s * steps
            for part, median in part_medians.items():
                excess_s = (own[rank][part] - median) * steps
                episode.excess_s[part] = episode.excess_s.get(part, 0.0) + excess_s
            if episode.windows >= WINDOWS and episode.steps >= STEPS:
                self._is_slow[rank] = not self._is_slow[rank]
                told.append(self._told(rank, episode))
                self._episodes[rank] = _Episode()
        return told

    def _told(self, rank: int, episode: _Episode) -> Told:
        own_s, median_s = episode.own_s / episode.steps, episode.median_s / episode.steps
        where = f"rank {rank} on {self.nodes[rank]}"
        facts = {"rank": rank, "node": self.nodes[rank], "own_s": own_s, "median_s": median_s}
        if not self._is_slow[rank]:
            line = f"{where} keeps up again: {own_s:.2f} s a step, the median is {median_s:.2f} s"
            return Told(line, {**facts, "slow": False})
        part = max(episode.excess_s, key=episode.excess_s.__getitem__)
        line = (
            f"{where} is slow: its own part of a step takes {own_s:.3g} s where the median of "
            f"{len(self.nodes)} ranks is {median_s:.3g} s, for {episode.steps} steps; most of it "
            f"in {part}"
        )
        return Told(line, {**facts, "slow": True, "part": part})
