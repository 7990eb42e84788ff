"""A copy of rows that is made while training goes on changing them: each block of rows is copied
once, by whoever comes to it first, the checkpoint's thread or the step that is about to change it.
"""

import threading
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_ROWS = 128
"""Rows that are copied together: as many consecutive ones as a sampled head draws."""
TOGETHER_BYTES = 2 << 20
"""Bytes that the checkpoint's thread copies before it looks again: a step waits for no more."""
_LIVE, _CLAIMED, _COPIED = range(3)

Bytes = NDArray[np.uint8]
Blocks = NDArray[np.int64]


def can_be_copied(tensor: Tensor) -> bool:
    """Whether `RowsCopy` can copy the tensor."""
    return tensor.device.type == "cpu" and tensor.is_contiguous()


class RowsCopy:
    """Copies rows of tensors as they are when this is made. From then on until `copy_all` returns
    every change of them has to be told by `before_change` before it is made.

    Any number of threads may call both methods at a time.
    """

    def __init__(self, rows: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
        """`rows` [n, ...], each with a copy of the same shape and dtype; all contiguous and on the
        CPU."""
        self._pairs = [
            (_bytes_of_rows(source), _bytes_of_rows(target))
            for source, target in zip(rows, copies, strict=True)
        ]
        self._num_rows = len(rows[0]) if rows else 0
        self._row_bytes = sum(source.shape[1] for source, _ in self._pairs)
        self._state = np.full(-(-self._num_rows // BLOCK_ROWS), _LIVE, np.uint8)
        self._left = len(self._state)
        """Blocks that are not copied yet."""
        self._changed = threading.Condition()
        """Guards the two above; told of each block that is copied."""

    def before_change(self, ids: slice | Tensor) -> None:
        """Copy these rows now unless they are copied; numbers that are not below n are passed over.
        Waits at most for what another thread is just copying of them."""
        if not self._left:
            return
        touched = np.zeros(len(self._state), np.bool_)
        if isinstance(ids, slice):
            first, end, _ = ids.indices(self._num_rows)
            if first < end:
                touched[first // BLOCK_ROWS : (end - 1) // BLOCK_ROWS + 1] = True
        else:
            ids_n = ids.cpu().numpy()
            touched[ids_n[ids_n < self._num_rows] // BLOCK_ROWS] = True
        self._copy_blocks(np.flatnonzero(touched))

    def copy_all(self) -> None:
        """Copy all rows that are not copied yet: from the last to the first, as steps go through
        them the other way and the two then meet once."""
        together = max(1, TOGETHER_BYTES // max(1, BLOCK_ROWS * self._row_bytes))
        for end in range(len(self._state), 0, -together):
            self._copy_blocks(np.arange(max(0, end - together), end))

    def _copy_blocks(self, blocks: Blocks) -> None:
        """Copy those of these blocks that nobody has copied or is copying, and wait for the
        others."""
        with self._changed:
            mine = blocks[self._state[blocks] == _LIVE]
            self._state[mine] = _CLAIMED
        try:
            for first, end in _runs(mine):
                here = slice(first * BLOCK_ROWS, end * BLOCK_ROWS)
                for source, target in self._pairs:
                    # Not by torch, whose threads wait for each other at each block.
                    np.copyto(target[here], source[here])
        except BaseException:
            self._set(mine, _LIVE)  # nobody waits for what does not come
            raise
        self._set(mine, _COPIED)
        with self._changed:
            self._changed.wait_for(lambda: not (self._state[blocks] == _CLAIMED).any())

    def _set(self, blocks: Blocks, state: int) -> None:
        if len(blocks):
            with self._changed:
                self._state[blocks] = state
                self._left -= len(blocks) * (state == _COPIED)
                self._changed.notify_all()


def _runs(blocks: Blocks) -> Iterator[tuple[int, int]]:
    """The first of each run of consecutive numbers, and the one after its last."""
    ends = np.flatnonzero(np.diff(blocks) > 1) + 1
    for run in np.split(blocks, ends) if len(blocks) else []:
        yield int(run[0]), int(run[-1]) + 1


def _bytes_of_rows(rows: Tensor) -> Bytes:
    """The bytes of each row, uint8 [n, bytes], not copied."""
    row_bytes = rows.element_size() * prod(rows.shape[1:])
    # A single number counts as contiguous whatever its stride.
    flat = rows.detach().as_strided((rows.numel(),), (1,)).view(torch.uint8)
    found: Bytes = flat.numpy().reshape(len(rows), row_bytes)
    return found
