"""BatchNorm over the images of all ranks together.

torch's `SyncBatchNorm` refuses tensors on the CPU; the layer here takes its place there.

Shapes: N this rank's images, C channels, L all that stands behind them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from manyfaces.configs.errors import UserError
from manyfaces.models.head.collectives import Ranks

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronise_batchnorm(
    network: nn.Module, group: ProcessGroup, device: torch.device
) -> nn.Module:
    """The same network with every BatchNorm over all ranks of `group`; weights and statistics stay
    the same objects. Raises `UserError` for layers derived from BatchNorm, whose own doings would
    be lost."""
    for name, layer in network.named_modules():
        if isinstance(layer, _BatchNorm) and type(layer) not in _PLAIN:
            raise UserError(
                f"train.sync_batchnorm: the network has a {type(layer).__name__} ({name}), which "
                "does more than BatchNorm; set train.sync_batchnorm=false, or take a network with "
                "torch's own layers"
            )
    if device.type != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network, group)
        return converted
    return _converted(network, Ranks(group))


def _converted(module: nn.Module, ranks: Ranks) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return SyncBatchNorm(module, ranks)
    for name, child in module.named_children():
        setattr(module, name, _converted(child, ranks))
    return module


class SyncBatchNorm(_BatchNorm):
    """A BatchNorm in whose place it stands, with mean and variance over all ranks in training.

    All ranks call forward and backward together, with any number of images each, but not none. In
    evaluation mode there is no collective. Raises `ValueError` in training where all ranks together
    have one value a channel, as torch's layers do.
    """

    def __init__(self, plain: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(
            plain.num_features,
            plain.eps,
            plain.momentum,
            plain.affine,
            plain.track_running_stats,
            device="meta",
        )
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(plain, name))
        self.ranks, self.training = ranks, plain.training

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"SyncBatchNorm of {self.num_features} channels got {list(input.shape)}; expected "
                f"[N, {self.num_features}, ...]"
            )

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        mean_C, var_C, count = _statistics(input.detach(), self.ranks)
        if count <= 1:  # alike on all ranks; the running variance would become NaN
            raise ValueError(
                "SyncBatchNorm needs more than 1 value per channel over all ranks when training, "
                f"got input of the size {list(input.shape)}"
            )
        if self.track_running_stats:
            self._follow(mean_C, var_C * count / (count - 1))
        wide = _wide(input)
        return _Normalise.apply(  # type: ignore[no-any-return, no-untyped-call]
            input,
            self.weight,
            self.bias,
            mean_C.to(wide),
            var_C.to(wide),
            count,
            self.eps,
            self.ranks,
        )

    def _follow(self, mean_C: Tensor, var_C: Tensor) -> None:
        """Let the running statistics follow those of a batch, as torch's BatchNorm does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:  # a mean over all batches
            momentum = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var_C.to(self.running_var.dtype), momentum)


def _wide(values: Tensor) -> torch.dtype:
    """The type to compute in: 16 bits are not enough for sums."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _statistics(x_NCL: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all ranks, and how many values each is of;
    float64.

    The ranks' own means and variances are merged as Chan, Golub and LeVeque do (1979): a
    difference of mean squares would cancel. One collective.
    """
    own_mean_C, own_var_C = torch.batch_norm_update_stats(x_NCL.to(_wide(x_NCL)), None, None, 0.0)
    own_count = own_mean_C.new_tensor([x_NCL.numel() / x_NCL.shape[1]])
    told = torch.cat([own_count, own_mean_C, own_var_C]).double()
    told_Wk = ranks.gather(told[None], 1, 0.0)
    counts_W1, means_WC, vars_WC = told_Wk.split([1, len(own_mean_C), len(own_mean_C)], 1)
    count = counts_W1.sum()
    mean_C = (counts_W1 * means_WC).sum(0) / count
    var_C = (counts_W1 * (vars_WC + (means_WC - mean_C).square())).sum(0) / count
    return mean_C, var_C, count


class _Normalise(torch.autograd.Function):
    """The normalisation by given statistics, whose gradient is that through the statistics too."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NCL: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        mean_C: Tensor,
        var_C: Tensor,
        count: Tensor,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(x_NCL, weight_C, mean_C, (var_C + eps).rsqrt(), count)
        ctx.eps, ctx.ranks, ctx.has_bias = eps, ranks, bias_C is not None
        return F.batch_norm(x_NCL, mean_C, var_C, weight_C, bias_C, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_NCL: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; those of weight and bias are of this rank's images, as the engine adds up
        the ranks' itself. One collective."""
        x_NCL, weight_C, mean_C, inverse_std_C, count = ctx.saved_tensors
        wide = mean_C.dtype
        x_NCL, d_NCL = x_NCL.to(wide), d_out_NCL.to(wide)
        # torch's own kernel sums the products faster than a product and a sum.
        sums_only = [False, True, True]
        _, d_weight_C, d_bias_C = torch.ops.aten.native_batch_norm_backward(
            d_NCL, x_NCL, None, None, None, mean_C, inverse_std_C, True, ctx.eps, sums_only
        )
        sums_2C = ctx.ranks.sum_(torch.stack([d_bias_C, d_weight_C]).double())
        mean_d_C, mean_along_C = (sums_2C / count).to(wide)
        scale_C = inverse_std_C if weight_C is None else inverse_std_C * weight_C
        shape = (1, -1, *[1] * (x_NCL.ndim - 2))
        d_x_NCL = (x_NCL - mean_C.view(shape)).mul_((-inverse_std_C * mean_along_C).view(shape))
        d_x_NCL.add_(d_NCL).sub_(mean_d_C.view(shape)).mul_(scale_C.view(shape))
        return (
            d_x_NCL.to(d_out_NCL.dtype),
            d_weight_C if weight_C is not None else None,
            d_bias_C if ctx.has_bias else None,
            *[None] * 5,
        )
