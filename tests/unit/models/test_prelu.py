"""Our PReLU against torch's."""

import pytest
import torch
from torch import nn

from manyfaces.models.backbones.prelu import PReLU


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_same_values_and_gradients_as_torch(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x = torch.randn(4, 6, 5, 5).to(dtype).contiguous(memory_format=memory_format)
    x[0, :, 0] = 0  # torch takes zero for negative
    gradient = torch.randn(4, 6, 5, 5).to(dtype)
    found = []
    for prelu in (PReLU(6), nn.PReLU(6)):
        with torch.no_grad():
            prelu.weight.copy_(torch.linspace(-0.5, 1.5, 6))
        prelu.to(torch.float64 if dtype == torch.float64 else torch.float32)
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = prelu(leaf)
        out.backward(gradient)
        found.append((out, leaf.grad, prelu.weight.grad))
    (out, d_x, d_weight), (torch_out, torch_d_x, torch_d_weight) = found
    assert torch.equal(out, torch_out)
    assert torch.equal(d_x, torch_d_x)
    torch.testing.assert_close(
        d_weight, torch_d_weight, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )
