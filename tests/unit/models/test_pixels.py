"""Images as a network takes them: bits of the common case, channels with numbers of their own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyfaces.configs.backbones.iresnet import IResNet
from manyfaces.models.backbones.pixels import normalise, to_input

HALF = (127.5, 127.5, 127.5)
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CHANNELS = st.tuples(*[st.floats(1, 255, width=32)] * 3)
FORMATS = [torch.contiguous_format, torch.channels_last]


def images(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_one_mean_for_all_channels_is_the_scalar_arithmetic(
    memory_format: torch.memory_format,
) -> None:
    images_NHWC = images(7, 12)
    expected = images_NHWC.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)
    found = normalise(images_NHWC, HALF, HALF, memory_format)
    assert torch.equal(found, expected)
    assert torch.equal(found, normalise(images_NHWC))
    assert found.is_contiguous(memory_format=memory_format)


@given(mean=CHANNELS, std=CHANNELS, height=st.integers(1, 9), width=st.integers(1, 9))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_each_channel_has_its_mean_and_deviation(
    mean: tuple[float, float, float], std: tuple[float, float, float], height: int, width: int
) -> None:
    images_NHWC = images(height, width)
    found = normalise(images_NHWC, mean, std)
    assert found.shape == (2, 3, height, width)
    assert found.dtype == torch.float32
    expected = (images_NHWC.double() - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(found.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def test_the_numbers_are_the_ones_of_the_configuration() -> None:
    model = IResNet(pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD)
    images_NHWC = images(8, 6)
    expected = normalise(images_NHWC, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.equal(to_input(images_NHWC, model), expected)
    assert torch.equal(to_input(images_NHWC, IResNet()), normalise(images_NHWC))


def test_memory_that_is_given_is_used_again() -> None:
    floats_NCHW = normalise(images(5, 5))
    expected = normalise(images(5, 5).flip(2), IMAGENET_MEAN, IMAGENET_STD)
    found = normalise(images(5, 5).flip(2), IMAGENET_MEAN, IMAGENET_STD, out=floats_NCHW)
    assert found is floats_NCHW
    assert torch.equal(found, expected)


def test_numbers_first_used_while_evaluating_serve_training_too() -> None:
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    with torch.inference_mode():
        normalise(images(4, 4), mean, std)
    weight = torch.ones(1, requires_grad=True)
    (normalise(images(4, 4), mean, std) * weight).sum().backward()
    assert weight.grad is not None
