"""What a person is told while nothing comes from the workers: that they are waited for, for how
long, and which ranks are silent."""

from collections.abc import Callable, Mapping

from manyfaces.train.heartbeat import PERIOD_S, Heartbeat

SILENT_S = 4 * PERIOD_S
"""A rank that has not been heard of for so long is told, and again each time as much later."""


class Waiting:
    """Follows the ranks' heartbeats. `resources` says what the workers need and what there is."""

    def __init__(self, now_s: float, resources: Callable[[], str]) -> None:
        self.resources = resources
        self._started_s = self._told_s = now_s
        self._beats: dict[int, Heartbeat] = {}
        self._heard_s: dict[int, float] = {}

    def lines(
        self, now_s: float, beats: Mapping[int, Heartbeat], world_size: int | None
    ) -> list[str]:
        """What is to be told now, of the heartbeats of `world_size` ranks, or of all that have
        left one; what stood there at the first call is of an earlier session."""
        for rank, beat in beats.items():
            if self._beats.get(rank, beat) != beat:
                self._heard_s[rank] = now_s
        self._beats = dict(beats)
        heard_s = max(self._heard_s.values(), default=self._started_s)
        if now_s - self._told_s < SILENT_S:
            return []
        if now_s - heard_s >= SILENT_S:
            self._told_s = now_s
            resources = self.resources()
            reason = f": {resources}" if resources else ""
            return [f"waiting for the workers since {now_s - heard_s:.0f} s{reason}"]
        silent = [
            f"{beats[rank].where} has given no sign of life for {now_s - since_s:.0f} s, since "
            f"{beats[rank].phase!r}"
            for rank, since_s in sorted(self._heard_s.items())
            if rank in beats
            and (world_size is None or rank < world_size)
            and now_s - since_s >= SILENT_S
        ]
        if silent:
            self._told_s = now_s
        return silent
