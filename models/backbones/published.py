"""Networks whose weights others have published, opened without being told what they are: the
weights of a file are compared with each network of which published weights are known."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.models.backbones.channels import Channels
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.init import COUNTER, load_initial, named_as_ours
from manyfaces.models.backbones.weights import read_weights

IMAGE_HW = (112, 112)
"""Height and width of the images that published face models take."""
_TRAINING_ONLY = ("mask_token",)
"""Weights that a network uses in training alone: a file may lack them."""
_NAMES_SHOWN = 3


def open_published(
    file: Path,
    device: torch.device,
    model: schema.Backbone | None = None,
    channels: Channels | None = None,
) -> Encoder:
    """The encoder whose weights are in a file of another program.

    `model` is its network, and by default the one that has exactly these weights; `channels` is the
    order of the channels that it was trained on, which most files say. Raises `UserError` for a
    file that cannot be read, that fits no known network, or that has not all weights of `model`.
    """
    weights = read_weights(file)
    settings = model or _recognised(file, weights)
    backbone: nn.Module = settings.build(image_hw=IMAGE_HW)
    if problem := _problem(backbone, weights, file):
        raise UserError(f"{file}: is not of the network that model names: {problem}")
    load_initial(backbone, file, channels)
    return Encoder(backbone.to(device), settings, IMAGE_HW, device, autocast=False)


def _recognised(file: Path, weights: Mapping[str, Tensor]) -> schema.Backbone:
    """The network that has exactly these weights. Raises `UserError` where none has."""
    for settings in _known():
        with torch.device("meta"):
            network: nn.Module = settings.build(image_hw=IMAGE_HW)
        if not _problem(network, weights, file):
            return settings
    names = list(weights)
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    raise UserError(
        f"{file}: does not say which network its {len(names)} weights ({shown}) are of, and no "
        "network that is known fits them; give model, such as {kind: iresnet, depth: 50}, or a run "
        "or a file that `manyfaces export` wrote"
    )


def _known() -> Iterator[schema.Backbone]:
    for kind in schema.Backbone.kinds():
        yield from kind.published()


def _problem(network: nn.Module, weights: Mapping[str, Tensor], file: Path) -> str:
    """Why a file is not exactly of this network; nothing where it is. What stands beside the
    network in the file, as a head does, is no reason."""
    ours = network.state_dict()
    named = named_as_ours(network, _of_network(weights), file)
    for name, here in ours.items():
        there = named.get(name)
        if there is None and not name.endswith((COUNTER, *_TRAINING_ONLY)):
            return f"{name} is not in it"
        if there is not None and there.shape != here.shape:
            return f"{name} is {list(there.shape)} in it, and {list(here.shape)} in the network"
    unknown = [name for name in named if name not in ours]
    return f"it has {unknown[0]}, which the network has not" if unknown else ""


def _of_network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without those beside the network: where its own are under `model.`, as Lightning
    has them, others are of a head or a loss."""
    inside = {name: weight for name, weight in weights.items() if name.startswith("model.")}
    return inside or dict(weights)
