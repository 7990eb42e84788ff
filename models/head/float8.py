"""Numbers of 8 bits (E4M3, arXiv 2209.05433: four bits of exponent, three of mantissa), which torch
stores and hardly computes with."""

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
SMALLEST_NORMAL = 2.0**-6
_SIGN_ALONE = ~0x4000
_SCALE = 2.0**8


def bits(tensor: Tensor) -> Tensor:
    """The tensor itself or, of numbers of 8 bits, their bytes: to move and compare them."""
    return tensor.view(torch.uint8) if tensor.dtype == FLOAT8 else tensor


def to_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, itself where it is already. Numbers of 8 bits have to be finite.

    On a CPU torch converts those one by one, ten times slower than this: moved by 7 bits, exponent
    and mantissa are those of a float16 that is 2^-8 times the number.
    """
    if tensor.dtype != FLOAT8 or tensor.is_cuda:
        return tensor.float()
    moved = tensor.view(torch.int8).to(torch.int16).bitwise_left_shift_(7)
    return moved.bitwise_and_(_SIGN_ALONE).view(torch.float16).float().mul_(_SCALE)
