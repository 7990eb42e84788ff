"""PReLU (arXiv 1502.01852) with a backward pass for CPUs.

Measured on two cores, a training step of MobileFaceNet, bfloat16, channels last, batch 128: 46
images/s with torch's own backward pass, 62 to 68 with this one, 77 with a bare ReLU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, weight_C: Tensor) -> Tensor:
        ctx.save_for_backward(x_NCHW, weight_C)
        return torch.prelu(x_NCHW, weight_C.to(x_NCHW.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_NCHW, weight_C = ctx.saved_tensors
        d_x = torch.ops.aten.threshold_backward(gradient_NCHW, x_NCHW, 0)
        # The gradient where x <= 0, and zero elsewhere. It is exact, as one side is always zero.
        negative = gradient_NCHW - d_x
        d_x.addcmul_(negative, weight_C.to(d_x.dtype).view(1, -1, 1, 1))
        return d_x, negative.mul_(x_NCHW).sum((0, 2, 3), dtype=weight_C.dtype)


class PReLU(nn.PReLU):
    """One slope a channel; torch's kernels on a GPU, the faster backward pass on CPU. Images [N, C,
    H, W], any float dtype."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if x_NCHW.device.type == "cpu" and torch.is_grad_enabled():
            return _PReLU.apply(x_NCHW, self.weight)  # type: ignore[no-any-return,no-untyped-call]
        return super().forward(x_NCHW)
