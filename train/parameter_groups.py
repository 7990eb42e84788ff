"""Parameter groups: which weights of a network are trained with which learning rate and decay."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.backbone import Backbone

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class ParamGroup:
    """Weights that are trained with the same learning rate and decay."""

    name: str
    """What they have in common, for people."""
    parameters: dict[str, nn.Parameter]
    """The weights by their names in the network."""
    lr_scale: float
    """Factor on the learning rate of the schedule."""
    weight_decay: float


def groups_of(network: nn.Module, optimizer: schema.Optimizer) -> list[ParamGroup]:
    """Every trained weight of `network` in exactly one group; with default settings that is one
    group. Frozen weights are in none.

    Raises `UserError` for a pattern in `train.optimizer.groups` that matches nothing, and for
    `train.optimizer.layer_decay` on a network without blocks.
    """
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    chosen = _first_matches(list(trained), optimizer)
    layer_scales = _layer_scales(network, optimizer.layer_decay)
    found: dict[tuple[str, float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in trained.items():
        labels, lr_scale, weight_decay = [], 1.0, optimizer.weight_decay
        group = chosen.get(name)
        if group is not None:
            labels.append(group.match)
            lr_scale = group.lr_scale
        if name in layer_scales:
            lr_scale *= layer_scales[name]
            labels.append(f"lr x {layer_scales[name]:.3g}")
        if group is not None and group.weight_decay is not None:
            weight_decay = group.weight_decay
        elif parameter.ndim <= 1 and not optimizer.decay_norms_and_biases:
            weight_decay = 0.0
            labels.append("no decay")
        key = (", ".join(labels) or "all", lr_scale, weight_decay)
        found.setdefault(key, {})[name] = parameter
    return [ParamGroup(key[0], weights, key[1], key[2]) for key, weights in found.items()]


def _first_matches(names: list[str], optimizer: schema.Optimizer) -> dict[str, schema.Group]:
    """For each name that a pattern matches, the first group whose pattern does."""
    chosen: dict[str, schema.Group] = {}
    for number, group in enumerate(optimizer.groups):
        where = f"train.optimizer.groups[{number}].match {group.match!r}"
        matched = [name for name in names if fnmatchcase(name, group.match)]
        if not matched:
            some = ", ".join(names[:_NAMES_SHOWN])
            raise UserError(
                f"{where} matches none of the network's {len(names)} trained weights ({some}, "
                "...); correct the pattern or leave the group out"
            )
        left = [name for name in matched if name not in chosen]
        if not left:
            raise UserError(
                f"{where}: groups before it match all of its {len(matched)} weights already "
                f"({matched[0]}, ...), and the first that matches counts; put it before them or "
                "leave it out"
            )
        chosen.update(dict.fromkeys(left, group))
    return chosen


def _layer_scales(network: nn.Module, layer_decay: float | None) -> dict[str, float]:
    """Factor on the learning rate of each weight of a backbone by its depth: `layer_decay` to the
    power of the depths behind it (BEiT, arXiv 2106.08254). What a network has besides the backbone
    is not in it, and keeps the whole rate."""
    if layer_decay is None:
        return {}
    scales: dict[str, float] = {}
    for prefix, backbone in _backbones(network):
        last = backbone.num_depths - 1
        for name, depth in backbone.depths().items():
            scales[f"{prefix}{name}"] = layer_decay ** (last - depth)
    if not scales:
        raise UserError(
            f"train.optimizer.layer_decay {layer_decay:g}: the network names no blocks to count "
            "its depth by; derive it from manyfaces.models.backbones.backbone.Backbone and return "
            "them from list_blocks, or set train.optimizer.layer_decay=null"
        )
    return scales


def _backbones(network: nn.Module) -> Iterator[tuple[str, Backbone]]:
    """The backbones in `network` that have blocks, with what their weights' names begin with."""
    for name, module in network.named_modules():
        if isinstance(module, Backbone) and module.list_blocks():
            yield (f"{name}." if name else ""), module
