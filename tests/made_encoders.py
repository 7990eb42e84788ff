"""Small encoders with weights of chance, whose activations are of ordinary size, for what writes
and reads them."""

import torch
from torch import nn

from manyfaces.configs.adapters.lora import LoRA
from manyfaces.configs.backbones.backbone import Backbone
from manyfaces.models.adapters.adapter import Adapted, adapt
from manyfaces.models.backbones.encoder import Encoder

PX = 32


def made_encoder(settings: Backbone, px: int = PX, autocast: bool = False) -> Encoder:
    """An encoder of this kind, adapted by LoRA where its settings have adapters."""
    torch.manual_seed(5)
    backbone: nn.Module = settings.build(image_hw=(px, px))
    if settings.adapters:
        assert all(isinstance(each, LoRA) for each in settings.adapters)
        adapt(backbone, settings.adapters, (px, px))
        for module in backbone.modules():
            if isinstance(module, Adapted):
                for parameter in module.adapter_parameters():
                    nn.init.normal_(parameter, std=0.2)
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the statistics of all that passes through
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    backbone.train()
    with torch.no_grad():
        backbone(torch.rand(32, 3, px, px) * 2 - 1)
    return Encoder(backbone, settings, (px, px), torch.device("cpu"), autocast)
