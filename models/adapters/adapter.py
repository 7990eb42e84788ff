"""What an adapter is, and how backbones are adapted, told apart from their base, and merged.

The base of an adapted backbone is its fixed weights: all parameters but those of adapters and of
its embedding layers.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.backbone import Backbone


class Adapted(nn.Module):
    """Mixed into the layer that takes the place of an adapted one: it keeps the names of the
    layer's own weights, and has trained ones besides."""

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """The trained weights."""
        raise NotImplementedError

    def merged(self) -> nn.Module:
        """The plain layer that computes the same outside of training, with weights of its own."""
        raise NotImplementedError


class Adapter(ABC):
    """Puts adapted layers into a backbone."""

    @abstractmethod
    def layers(self, backbone: nn.Module) -> dict[str, Adapted]:
        """The layers that it would put into `backbone`, by the names of those whose place they
        take. Raises `UserError` for a setting that fits none."""


def adapt(
    backbone: nn.Module, adapters: Sequence[schema.Adapter], image_hw: tuple[int, int]
) -> None:
    """Put adapted layers into a backbone, in place; after that only they and its embedding layers
    are trained.

    Raises `UserError` for a target that no layer fits, for a layer whose weights the network uses
    without calling it, and for a backbone with BatchNorm before its embedding layers, whose
    statistics would move.
    """
    own = set(map(id, _embedding_modules(backbone)))
    for name, module in backbone.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in own:
            raise UserError(
                f"model.adapters: the network has BatchNorm ({name}), whose statistics training "
                "moves, so that the base would not stay as it is; adapt a transformer"
            )
    placed: dict[str, Adapted] = {}
    for config in adapters:
        adapter: Adapter = config.build()
        layers = adapter.layers(backbone)
        if both := sorted(placed.keys() & layers):
            raise UserError(f"model.adapters: two of them change the layer {both[0]}; leave one")
        placed |= layers
    for name, layer in placed.items():
        _put(backbone, name, layer)
    for parameter in base(backbone).values():
        parameter.requires_grad_(False)
    _refuse_uncalled(backbone, placed, image_hw)


def base(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """The fixed weights of an adapted backbone, by name."""
    trained = {id(p) for module in _embedding_modules(backbone) for p in module.parameters()}
    for module in backbone.modules():
        if isinstance(module, Adapted):
            trained.update(map(id, module.adapter_parameters()))
    return {name: p for name, p in backbone.named_parameters() if id(p) not in trained}


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of weights. Those of a base are taken as its file
    has them: interpolated ones have other bits on another kind of machine."""
    digest = hashlib.sha256()
    for name, given in sorted(weights.items()):
        weight = given.detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def merge(backbone: nn.Module) -> None:
    """Put plain layers in place of the adapted ones, which compute the same up to rounding."""
    for name, module in list(backbone.named_modules()):
        if isinstance(module, Adapted):
            _put(backbone, name, module.merged())


def _put(backbone: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(backbone.get_submodule(parent), last, layer)


def _embedding_modules(backbone: nn.Module) -> list[nn.Module]:
    layers = backbone.embedding_layers() if isinstance(backbone, Backbone) else []
    return [module for layer in layers for module in layer.modules()]


def _refuse_uncalled(
    backbone: nn.Module, placed: dict[str, Adapted], image_hw: tuple[int, int]
) -> None:
    """Some networks compute by a layer's weight without calling the layer: an adapter there would
    change nothing. One image shows it."""
    called: set[int] = set()
    hooks = [
        layer.register_forward_pre_hook(lambda module, _: called.add(id(module)))
        for layer in placed.values()
    ]
    was_training = backbone.training
    device = next(backbone.parameters()).device
    with torch.no_grad():
        backbone.eval()(torch.zeros(1, 3, *image_hw, device=device))
    backbone.train(was_training)
    for hook in hooks:
        hook.remove()
    for name, layer in placed.items():
        if id(layer) not in called:
            raise UserError(
                f"model.adapters: the network uses the weights of {name} without calling the "
                "layer, so that an adapter there would change nothing; choose other targets"
            )
