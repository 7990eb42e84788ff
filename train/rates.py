"""How fast a run is, where its time goes, and which rank is the slowest, for each row of metrics.

The own time of a rank is that in which it waits for no other: the wait for its data and the forward
pass of the network. A rank that waits for a slower one does so in the exchanges of the head, of the
backward pass and of the optimiser, which therefore say nothing of it. A device or a disk that is
slow shows in its own time; a slow network between ranks does not, because all wait for it alike.
"""

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from manyfaces.configs.schema import Config
from manyfaces.train.part_times import PARTS, STEP_PARTS, PartTimes
from manyfaces.train.slow_ranks import SlowRanks, Told, slowest


def own_parts(config: Config) -> Sequence[str]:
    """The parts in which a rank waits for no other. With synchronised BatchNorm and with ZeRO stage
    3 ranks exchange something in the forward pass as well."""
    exchanges = config.train.sync_batchnorm or config.engine.zero_stage == 3
    return ("data",) if exchanges else ("data", "forward")


class Rates:
    """Counts since the last row of metrics, and gathers those of all ranks over `group`, of gloo,
    which nothing on the device waits for. Collective."""

    def __init__(self, times: PartTimes, own: Sequence[str], group: dist.ProcessGroup) -> None:
        self.times, self.own, self.group = times, own, group
        self._steps, self._images, self._since = 0, 0, time.monotonic()
        self.world_size = dist.get_world_size(group)
        nodes: list[Any] = [None] * self.world_size
        dist.all_gather_object(nodes, socket.gethostname(), group=group)
        self._slow = SlowRanks(nodes)

    def count(self, images: int) -> None:
        """A step has trained on these images of all ranks."""
        self._steps, self._images = self._steps + 1, self._images + images

    @contextlib.contextmanager
    def paused(self, part: str | None = None) -> Iterator[None]:
        """What runs inside of it is no part of the training. It is counted as this part, if any."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        if part is not None:
            self.times.add(part, seconds)
        self._since += seconds

    def restart(self) -> None:
        """Begin anew, after what is no part of the training."""
        self.times.take()
        self._steps, self._images, self._since = 0, 0, time.monotonic()

    def take(self) -> tuple[dict[str, float], list[Told]]:
        """The rates since the last time, and what is to be told of slow ranks; all begins anew. The
        shares are of the time of training, means over the ranks; that of evaluation is of all
        time. Collective."""
        now = time.monotonic()
        elapsed, steps, images = now - self._since, self._steps, self._images
        mine = self.times.take()
        self._steps, self._images, self._since = 0, 0, now
        table = self._gathered(mine)
        mean = {part: sum(each[part] for each in table) / len(table) for part in PARTS}
        rates = {"images_per_s": images / elapsed, "data_wait_share": mean["data"] / elapsed}
        rates |= {f"{part}_share": mean[part] / elapsed for part in (*STEP_PARTS, "checkpoint")}
        rates["evaluation_share"] = mean["evaluation"] / (elapsed + mean["evaluation"])
        if self.world_size == 1 or not steps:
            return rates, []
        own = [{part: each[part] / steps for part in self.own} for each in table]
        rank, spread = slowest(own)
        rates |= {"slowest_rank": float(rank), "slowest_rank_ratio": spread}
        return rates, self._slow.look(steps, own, elapsed / steps)

    def _gathered(self, mine: dict[str, float]) -> list[dict[str, float]]:
        """The seconds of each rank's parts, in rank order."""
        if self.world_size == 1:
            return [mine]
        row = torch.tensor([mine[part] for part in PARTS], dtype=torch.float64)
        rows = [torch.empty_like(row) for _ in range(self.world_size)]
        dist.all_gather(rows, row, group=self.group)
        return [dict(zip(PARTS, each.tolist(), strict=True)) for each in rows]
