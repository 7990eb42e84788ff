"""Class rows that live in host memory (`head.placement: host`): copies of those that a step chose
go to the device, and back.

One thread does all of the host's work in the order in which it was asked for: the rows of a step
are put back before those of the next are gathered, so that a class chosen twice in a row is the new
one. On CUDA they pass through pinned buffers, on a stream of their own: drawn rows come while the
backbone runs forward, those of the batch's own classes once labels are known, and all go back while
it runs backward. Only the buffers are pinned: chosen rows lie scattered and have to be gathered
anyway, and torch rounds what it pins up to a power of two. On CPU the same copies are made.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from manyfaces.models.head.rows import Rows, sent
from manyfaces.models.head.sampling import BLOCK, Columns

_SPARE = 4 * BLOCK
"""More rows than asked for that buffers hold: the number of drawn blocks that fall into a rank's
range changes by one or two."""


class _Table(NamedTuple):
    """A tensor with something of each class."""

    name: str
    whole_C: Tensor
    """All classes, on the host."""
    passing_n: Tensor
    """Those on their way, on the host; on CPU `staged_n` itself."""
    staged_n: Tensor
    """The chosen ones, on the device."""


class Staging:
    """`planes` hold all rows, on the host; `stage` gives planes on `device` of the chosen ones,
    `put_back` writes those back."""

    def __init__(self, planes: Sequence[Rows], device: torch.device) -> None:
        self.planes, self.device = planes, device
        for plane in planes:
            plane.share_on_(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._worker = ThreadPoolExecutor(1, "class-rows")
        self._jobs: list[Future[torch.cuda.Event | None]] = []
        self._tables: list[list[_Table]] = []
        """Of each plane."""
        self._room = 0
        self._ahead_n = self._chosen_n = torch.empty(0, dtype=torch.int64)

    def prefetch(self, ids_n: Tensor, more: int) -> None:
        """Start to copy these rows, local numbers, int64 on the host; `more` may come with
        `stage`."""
        if len(self._ahead_n) or len(ids_n) + more + 1 > self._room:
            self.wait()
        self._reserve(len(ids_n) + more + 1)
        self._ahead_n = ids_n
        self._begin(self._bring, ids_n, 0)

    def stage(self, columns: Columns) -> tuple[list[Rows], Columns]:
        """Copies of the rows behind `columns`, in the order of the columns, and the columns by rows
        of those. Given is what is on the host; the outcome is on the device."""
        # The last row stands for no class.
        numbers = [chunk.ids for chunk in columns.chunks if isinstance(chunk.ids, Tensor)]
        ids_n = torch.cat([*numbers, torch.tensor([self.planes[0].num_rows])])
        if len(ids_n) > self._room or not torch.equal(self._ahead_n, ids_n[: len(self._ahead_n)]):
            self.wait()
            self._reserve(len(ids_n))
        first = len(self._ahead_n)
        self._begin(self._bring, ids_n[first:], first)
        brought = self._join()
        if brought is not None:
            torch.cuda.current_stream(self.device).wait_event(brought)
        self._ahead_n, self._chosen_n = self._ahead_n[:0], ids_n[:-1]

        numbers_C = sent(ids_n.int().numpy(), self.device)
        planes = [
            plane.staged({table.name: table.staged_n[: len(ids_n)] for table in tables}, numbers_C)
            for plane, tables in zip(self.planes, self._tables, strict=True)
        ]
        chunks = [
            replace(
                chunk,
                ids=slice(chunk.first, chunk.first + len(chunk)),
                absent_n=self._sent(chunk.absent_n),
                space_n=self._sent(chunk.space_n),
            )
            for chunk in columns.chunks
        ]
        spaces = self._sent(columns.space_B), self._sent(columns.spaces_S1)
        return planes, Columns(chunks, sent(columns.targets_B.numpy(), self.device), *spaces)

    def put_back(self) -> None:
        """Start to write the staged rows back; nobody may change them any more."""
        self._begin(self._return, self._chosen_n)
        if any(plane.settles_next for plane in self.planes):
            self.wait()

    def wait(self) -> None:
        """Until all rows are on the host. What was prefetched is forgotten, as the rows may be
        changed now."""
        done = self._join()
        if done is not None:
            done.synchronize()
        self._ahead_n = self._ahead_n[:0]

    def seen(self, labels_B: Tensor) -> Tensor:
        """On the host: the one thing of a step that it waits for."""
        if self._stream is None:
            return labels_B
        here_B = torch.empty_like(labels_B, device="cpu", pin_memory=True).copy_(
            labels_B, non_blocking=True
        )
        torch.cuda.current_stream(self.device).record_event().synchronize()
        return here_B

    def _sent(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else sent(tensor.numpy(), self.device)

    def _reserve(self, num_rows: int) -> None:
        """Room for so many. No job may be under way where that is more than there was."""
        if num_rows <= self._room:
            return
        self._room = num_rows + _SPARE
        self._tables = []
        for plane in self.planes:
            wholes = {
                name: whole_C
                for name in plane.by_class
                if (whole_C := getattr(plane, name)) is not None
            }
            self._tables.append([self._table(name, whole_C) for name, whole_C in wholes.items()])

    def _table(self, name: str, whole_C: Tensor) -> _Table:
        staged_n = whole_C.new_empty(self._room, *whole_C.shape[1:], device=self.device)
        passing_n = (
            staged_n
            if self._stream is None
            else torch.empty_like(staged_n, device="cpu", pin_memory=True)
        )
        return _Table(name, whole_C, passing_n, staged_n)

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
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            stream.wait_event(asked)
            job(*given)
            done: torch.cuda.Event = stream.record_event()
            return done

    def _join(self) -> torch.cuda.Event | None:
        """Wait for the thread. The event is after all that its jobs have asked of the device."""
        jobs, self._jobs = self._jobs, []
        return [job.result() for job in jobs][-1] if jobs else None

    def _bring(self, ids_n: Tensor, first: int) -> None:
        for table in chain(*self._tables):
            passing_n, staged_n = (
                part[first : first + len(ids_n)] for part in (table.passing_n, table.staged_n)
            )
            torch.index_select(table.whole_C, 0, ids_n, out=passing_n)
            if self._stream is not None:
                staged_n.copy_(passing_n, non_blocking=True)

    def _return(self, ids_n: Tensor) -> None:
        if self._stream is not None:
            for table in chain(*self._tables):
                table.passing_n[: len(ids_n)].copy_(table.staged_n[: len(ids_n)], non_blocking=True)
            self._stream.record_event().synchronize()
        for table in chain(*self._tables):
            table.whole_C.index_copy_(0, ids_n, table.passing_n[: len(ids_n)])
