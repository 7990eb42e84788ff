"""Similarity warps of images that gradients pass through, to the images and to the warp.

Shapes: N images, H and W their height and width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def warped(images_NHWC: Tensor, warps_N4: Tensor) -> Tensor:
    """Images (float, [N, H, W, 3], any range from 0) scaled, turned and shifted, of the same shape.

    A warp is (scale, angle in radians, shift to the right, shift down), the shifts in halves of the
    image's side: it says where in the image each place is taken from, bilinearly, in coordinates
    from -1 to 1. What lies outside of the image is black.
    """
    scale_N, angle_N, right_N, down_N = warps_N4.unbind(1)
    cos_N, sin_N = scale_N * torch.cos(angle_N), scale_N * torch.sin(angle_N)
    rows = torch.stack([cos_N, -sin_N, right_N, sin_N, cos_N, down_N], 1)
    num_images, height, width, channels = images_NHWC.shape
    grid_NHW2 = F.affine_grid(
        rows.view(-1, 2, 3), [num_images, channels, height, width], align_corners=False
    )
    return F.grid_sample(
        images_NHWC.permute(0, 3, 1, 2),
        grid_NHW2,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    ).permute(0, 2, 3, 1)
