"""A batch of one value a channel has no variance."""

import pytest
import torch
from torch import nn

from manyfaces.models.backbones.sync_batchnorm import SyncBatchNorm
from manyfaces.models.head.collectives import Ranks


def test_batchnorm_over_all_ranks_refuses_it_as_torch_does() -> None:
    plain = nn.BatchNorm1d(3)
    layer = SyncBatchNorm(nn.BatchNorm1d(3), Ranks(None))
    for network in (plain, layer):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network(torch.ones(1, 3))
    assert layer.running_var is not None
    assert layer.running_var.tolist() == [1, 1, 1]
    layer(torch.ones(1, 3, 2))
    assert layer.eval()(torch.ones(1, 3)).isfinite().all()
