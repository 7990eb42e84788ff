"""Staging of class rows that live in host memory (`head.placement: host`): copies of those that a
step chose go to the device, and back.

One thread does all of the host's work in the order in which it was asked for: the rows of a step
are copied back before those of the next are gathered, so that a class chosen twice in a row is the
new one. On CUDA they pass through pinned buffers, on a stream of their own: drawn rows come while
the backbone runs forward, those of the batch's own classes once labels are known, and all go back
while it runs backward. Only the buffers are pinned: chosen rows lie scattered and have to be
gathered anyway, and torch rounds what it pins up to a power of two. On CPU the same copies are
made.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.head.devices import to_device
from manyfaces.models.head.float8 import bits
from manyfaces.models.head.rows import Rows
from manyfaces.models.head.sampling import BLOCK, Columns

_SPARE_ROWS = 4 * BLOCK
"""How many rows more than asked for the buffers hold: the number of drawn blocks that fall into a
rank's range changes by one or two."""


class _Buffers(NamedTuple):
    """One tensor that holds something of each class, and the buffers for the chosen classes."""

    name: str
    """The attribute of `Rows` that it is."""
    all_C: Tensor
    """All classes, on the host."""
    host_n: Tensor
    """The chosen ones on their way, on the host; on CPU `device_n` itself."""
    device_n: Tensor
    """The chosen ones, on the device."""


class Staging:
    """`sub_centers` hold all rows, on the host; `stage` gives copies of the chosen ones on
    `device`, `put_back` writes those back."""

    def __init__(self, sub_centers: Sequence[Rows], device: torch.device) -> None:
        self.sub_centers, self.device = sub_centers, device
        for rows in sub_centers:
            rows.move_shared_(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1, "class-rows")
        self._jobs: list[Future[torch.cuda.Event | None]] = []
        self._buffers: list[list[_Buffers]] = []
        """For each sub-centre."""
        self._capacity = 0
        """How many rows the buffers hold."""
        self._prefetched_n = self._staged_n = torch.empty(0, dtype=torch.int64)
        """Local ids of the rows on their way ahead of a step, and of those staged last."""

    def prefetch(self, ids_n: Tensor, more: int) -> None:
        """Start to copy these rows to the device; `ids_n` are local ids, int64 on the host. `more`
        is how many others may come with `stage`."""
        if len(self._prefetched_n) or len(ids_n) + more + 1 > self._capacity:
            self.wait()
        self._reserve(len(ids_n) + more + 1)
        self._prefetched_n = ids_n
        self._begin(self._copy_in, ids_n, 0)

    def stage(self, columns: Columns) -> tuple[list[Rows], Columns]:
        """Copies of the rows of `columns`, in the order of the columns, and the columns with local
        ids among the copies. `columns` is on the host; what is returned is on the device."""
        # The last row stands for no class.
        ids = [chunk.ids for chunk in columns.chunks if isinstance(chunk.ids, Tensor)]
        ids_n = torch.cat([*ids, torch.tensor([self.sub_centers[0].num_rows])])
        num_prefetched = len(self._prefetched_n)
        is_ahead = torch.equal(self._prefetched_n, ids_n[:num_prefetched])
        if len(ids_n) > self._capacity or not is_ahead:
            self.wait()
            self._reserve(len(ids_n))
        first = len(self._prefetched_n)
        self._begin(self._copy_in, ids_n[first:], first)
        copied = self._join_worker()
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)
        self._prefetched_n, self._staged_n = self._prefetched_n[:0], ids_n[:-1]

        local_ids_C = to_device(ids_n.int().numpy(), self.device)
        copies = [
            rows.staged_copy(
                {each.name: each.device_n[: len(ids_n)] for each in buffers}, local_ids_C
            )
            for rows, buffers in zip(self.sub_centers, self._buffers, strict=True)
        ]
        chunks = [
            replace(
                chunk,
                ids=slice(chunk.first, chunk.first + len(chunk)),
                excluded_n=self._to_device(chunk.excluded_n),
                space_n=self._to_device(chunk.space_n),
            )
            for chunk in columns.chunks
        ]
        targets_B = to_device(columns.targets_B.numpy(), self.device)
        spaces = self._to_device(columns.space_B), self._to_device(columns.spaces_S1)
        return copies, Columns(chunks, targets_B, *spaces)

    def put_back(self) -> None:
        """Start to write the staged rows back; nobody may change them any more."""
        self._begin(self._copy_back, self._staged_n)
        if any(rows.flushes_next for rows in self.sub_centers):
            self.wait()

    def wait(self) -> None:
        """Wait until all rows are on the host. What was prefetched is dropped, as the rows may be
        changed now."""
        done = self._join_worker()
        if done is not None:
            done.synchronize()
        self._prefetched_n = self._prefetched_n[:0]

    def _to_device(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else to_device(tensor.numpy(), self.device)

    def _reserve(self, num_rows: int) -> None:
        """Make buffers for so many rows, if there are none yet. No job may be under way then."""
        if num_rows <= self._capacity:
            return
        self._capacity = num_rows + _SPARE_ROWS
        self._buffers = []
        for rows in self.sub_centers:
            tensors = {name: getattr(rows, name) for name in rows.per_class}
            self._buffers.append(
                [self._make(name, all_C) for name, all_C in tensors.items() if all_C is not None]
            )

    def _make(self, name: str, all_C: Tensor) -> _Buffers:
        device_n = all_C.new_empty(self._capacity, *all_C.shape[1:], device=self.device)
        host_n = device_n
        if self._stream is not None:
            host_n = torch.empty_like(device_n, device="cpu", pin_memory=True)
        return _Buffers(name, all_C, host_n, device_n)

    def _begin(self, job: Callable[..., None], *given: Tensor | int) -> None:
        """Have the thread do it, after what the device was asked for until now."""
        if self._stream is None:
            self._jobs.append(self._worker.submit(job, *given))
        else:
            asked = torch.cuda.current_stream(self.device).record_event()
            self._jobs.append(
                self._worker.submit(self._on_stream, self._stream, asked, job, *given)
            )

    def _on_stream(
        self,
        stream: torch.cuda.Stream,
        asked: torch.cuda.Event,
        job: Callable[..., None],
        *given: Tensor | int,
    ) -> torch.cuda.Event:
        """Do the job on the stream, once the event `asked` has passed; the event returned is after
        all that it asked of the device."""
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            stream.wait_event(asked)
            job(*given)
            done: torch.cuda.Event = stream.record_event()
            return done

    def _join_worker(self) -> torch.cuda.Event | None:
        """Wait for the thread. The event is after all that its jobs have asked of the device."""
        jobs, self._jobs = self._jobs, []
        return [job.result() for job in jobs][-1] if jobs else None

    def _copy_in(self, ids_n: Tensor, first: int) -> None:
        """Copy these rows into the buffers, from place `first` on."""
        places = slice(first, first + len(ids_n))
        for each in chain(*self._buffers):
            torch.index_select(bits(each.all_C), 0, ids_n, out=bits(each.host_n)[places])
            if self._stream is not None:
                each.device_n[places].copy_(each.host_n[places], non_blocking=True)

    def _copy_back(self, ids_n: Tensor) -> None:
        """Write the buffers' first rows back to where they came from."""
        if self._stream is not None:
            for each in chain(*self._buffers):
                each.host_n[: len(ids_n)].copy_(each.device_n[: len(ids_n)], non_blocking=True)
            self._stream.record_event().synchronize()
        for rows in self.sub_centers:
            rows.tell_change(ids_n)
        for each in chain(*self._buffers):
            bits(each.all_C).index_copy_(0, ids_n, bits(each.host_n)[: len(ids_n)])
