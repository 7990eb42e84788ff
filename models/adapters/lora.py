"""LoRA (arXiv 2106.09685): linear layers whose fixed weight W gets a trained product of two narrow
matrices beside it, W + s B A, with s = alpha / sqrt(r) (rsLoRA, arXiv 2312.03732) or alpha / r.

A starts random and B at zero, so that training starts at the base model. A layer that computes
queries, keys and values at once has a product for each of those that are wanted.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manyfaces.configs.adapters.lora import PROJECTIONS
from manyfaces.configs.errors import UserError
from manyfaces.models.adapters.adapter import Adapted, Adapter

_FUSED = ("qkv",)
"""Names of layers that compute queries, keys and values at once, in this order."""
_SINGLE = {
    word: (word, f"{word}_proj", f"to_{word}", name)
    for word, name in zip(PROJECTIONS, ("query", "key", "value"), strict=True)
}
"""Names of layers that compute one of them."""


class LoRA(Adapter):
    """Low-rank changes of the linear layers that `targets` name."""

    def __init__(
        self, rank: int, alpha: float, rank_stabilised: bool, dropout: float, targets: Sequence[str]
    ) -> None:
        self.rank, self.dropout, self.targets = rank, dropout, targets
        self.scale = alpha / (math.sqrt(rank) if rank_stabilised else rank)

    def layers(self, backbone: nn.Module) -> dict[str, Adapted]:
        linear = {
            name: module
            for name, module in backbone.named_modules()
            if isinstance(module, nn.Linear) and not isinstance(module, Adapted)
        }
        parts: dict[str, dict[str, slice]] = {}
        for target in self.targets:
            found = {
                name: part
                for name, module in linear.items()
                if (part := _part(target, name, module.out_features)) is not None
            }
            if not found:
                some = ", ".join(list(linear)[:4])
                raise UserError(
                    f"model.adapters.lora.targets: {target!r} fits none of the network's "
                    f"{len(linear)} linear layers ({some}, ...); correct it or leave it out"
                )
            for name, part in found.items():
                parts.setdefault(name, {})[target if part.stop else "whole"] = part
        for name, wanted in parts.items():
            if "whole" in wanted and len(wanted) > 1:
                raise UserError(
                    f"model.adapters.lora.targets: {', '.join(self.targets)} mean {name} twice; "
                    "leave one out"
                )
        return {
            name: LoRALinear(linear[name], wanted, self.rank, self.scale, self.dropout)
            for name, wanted in parts.items()
        }


def _part(target: str, name: str, out_features: int) -> slice | None:
    """Which outputs of the layer of this name a target means; `slice(None)` for all, None where it
    does not mean the layer."""
    last = name.rpartition(".")[2]
    if target not in PROJECTIONS:
        return slice(None) if fnmatchcase(name, target) else None
    if last in _FUSED and out_features % len(PROJECTIONS) == 0:
        width, place = out_features // len(PROJECTIONS), PROJECTIONS.index(target)
        return slice(place * width, (place + 1) * width)
    return slice(None) if last in _SINGLE[target] else None


class LoRALinear(nn.Linear, Adapted):
    """A linear layer with low-rank changes of some of its outputs: `parts` are the outputs of each
    by name. It takes over the weight and the bias of `linear`, whose place it takes."""

    def __init__(
        self,
        linear: nn.Linear,
        parts: Mapping[str, slice],
        rank: int,
        scale: float,
        dropout: float,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.parts = {name: range(*part.indices(self.out_features)) for name, part in parts.items()}
        self.lora_a = nn.ParameterDict()
        self.lora_b = nn.ParameterDict()
        for name, outputs in self.parts.items():
            down_RI = self.weight.new_empty(rank, self.in_features)
            nn.init.kaiming_uniform_(down_RI, a=math.sqrt(5))
            self.lora_a[name] = nn.Parameter(down_RI)
            self.lora_b[name] = nn.Parameter(self.weight.new_zeros(len(outputs), rank))

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.lora_a.values()
        yield from self.lora_b.values()

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        pieces, done = [], 0
        for name, outputs in sorted(self.parts.items(), key=lambda part: part[1].start):
            change = F.linear(F.linear(self.dropout(x), self.lora_a[name]), self.lora_b[name])
            pieces += [out[..., done : outputs.start]] if outputs.start > done else []
            pieces.append(out[..., outputs.start : outputs.stop] + self.scale * change)
            done = outputs.stop
        pieces += [out[..., done:]] if done < self.out_features else []
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        plain = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        plain.weight.copy_(self.weight)
        for name, outputs in self.parts.items():
            # In float64: the change of a weight is far smaller than the weight.
            change = self.lora_b[name].double() @ self.lora_a[name].double()
            rows = plain.weight[outputs.start : outputs.stop]
            rows.copy_(rows.double() + self.scale * change)
        if self.bias is not None:
            plain.bias.copy_(self.bias)
        return plain.requires_grad_(False)
