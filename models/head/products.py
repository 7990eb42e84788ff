"""Matrix products of the head on the fastest library that this torch has for them.

On CPU `torch.mm` asks MKL, which runs float32 on AMD at half of what oneDNN reaches (199 against
447 GFLOP/s on two Zen 5 cores, same error). oneDNN's float32 product is in every x86 build of
torch, as the operator behind compiled linear layers.
"""

import torch
from torch import Tensor


def times_transposed(left_mk: Tensor, right_nk: Tensor) -> Tensor:
    """left @ right.T, [m, n], in their dtype; nothing is remembered for autograd."""
    if (
        left_mk.device.type == "cpu"
        and left_mk.numel()
        and right_nk.numel()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        product_mn: Tensor = torch.ops.mkldnn._linear_pointwise(
            left_mk, right_nk, None, "none", [], ""
        )
        return product_mn
    return left_mk @ right_nk.T


def transposed(matrix_mn: Tensor) -> Tensor:
    """[n, m] for the left side of `times_transposed`: on CPU a copy, by two threads where that
    operator's own would take one. Slow where n is a multiple of 1,024: all of a row's copies would
    fall into the same sets of the cache."""
    if matrix_mn.device.type != "cpu":
        return matrix_mn.T
    return torch.mul(matrix_mn.T, 1, out=matrix_mn.new_empty(matrix_mn.shape[::-1]))
