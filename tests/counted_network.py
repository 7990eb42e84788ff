"""What torch counts of a network: the oracle of what the configuration says that it costs."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from manyfaces.configs.backbones.backbone import Backbone
from manyfaces.models.backbones.output import Output

_IMAGES = 2


def counted(config: Backbone, image_hw: tuple[int, int]) -> tuple[nn.Module, Output, float]:
    """The network without memory, what it returns for two images in evaluation, and the
    multiply-adds of one."""
    with torch.device("meta"):
        network = config.build(image_hw=image_hw).eval()
        images = torch.empty(_IMAGES, 3, *image_hw)
    # The counter knows attention by the plain kernel only where it is a product of matrices.
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        output = network(images)
    # A multiply-add is two operations to torch.
    return network, output, counter.get_total_flops() / 2 / _IMAGES


def num_parameters(network: nn.Module) -> int:
    """Numbers of all its parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
