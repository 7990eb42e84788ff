"""The collectives between the head's ranks; with one rank they do nothing.

Rank r of W holds samples [r B // W, (r + 1) B // W) of a global batch of B. On the wire each share
is padded to P = ceil(B / W), so that the collectives are even; the gathered batch has W P places.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# torch 2.13 renamed these two and warns of the old names; 2.11 has only the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Ranks:
    """The members of a process group; None is this process alone, without any collective."""

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self.rank: int = 0 if group is None else dist.get_rank(group)
        self.world_size: int = 1 if group is None else dist.get_world_size(group)
        self._gloo = group is not None and dist.get_backend(group) == "gloo"

    def gather(self, share_N: Tensor, padded: int, fill: float) -> Tensor:
        """The shares [N, ...] of all ranks in rank order, [W * padded, ...], each filled up to
        `padded` places with `fill`."""
        if self.world_size == 1:
            return share_N
        sent = share_N.new_full((padded, *share_N.shape[1:]), fill)
        sent[: len(share_N)] = share_N
        received = sent.new_empty((self.world_size * padded, *sent.shape[1:]))
        _all_gather(received, sent, group=self.group)
        return received

    def sum_(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place; the same bits on each."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def max_(self, values: Tensor) -> Tensor:
        """The largest over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def scatter_sum(self, parts_B: Tensor, num_samples: int) -> Tensor:
        """The sum over ranks of [W * padded, ...], of which this rank receives its own
        `num_samples`."""
        if self.world_size == 1:
            return parts_B
        own = (len(parts_B) // self.world_size, *parts_B.shape[1:])
        # gloo's reduce-scatter is an all-reduce, with twice the bytes; 16 bits are summed in
        # float32.
        if self._gloo:
            received = torch.empty_like(parts_B)
            dist.all_to_all_single(received, parts_B.contiguous(), group=self.group)
            summed = (
                received.view(self.world_size, *own).sum(0, dtype=torch.float32).to(parts_B.dtype)
            )
        else:
            summed = parts_B.new_empty(own)
            _reduce_scatter(summed, parts_B.contiguous(), group=self.group)
        return summed[:num_samples]
