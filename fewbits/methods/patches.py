"""A convolution as a matrix product: the patches of its input that each output is a weighted sum of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fewbits.planning.model_info import ConvGeometry

MAX_PATCHES = 4096  # enough for a covariance, and bounded in memory


def patches(x: Tensor, kernel: tuple[int, ...], geometry: ConvGeometry) -> Tensor | None:
    """Input patches per group, float32 [groups, n, channels/groups * kernel], or None for more than two axes.

    At most MAX_PATCHES of them, at regular distances over samples and places.

    Args:
        x: float32 [samples, channels, *space] with one or two axes of space.
        kernel: size of the kernel along each axis of space.
        geometry: strides, padding (zeros), dilations and groups.
    """
    if len(kernel) == 1:
        x, kernel = x.unsqueeze(-1), (*kernel, 1)
        geometry = ConvGeometry(
            (*geometry.strides, 1),
            (geometry.pads[0], 0, geometry.pads[1], 0),
            (*geometry.dilations, 1),
            geometry.groups,
        )
    if len(kernel) != 2:
        return None
    top, left, bottom, right = geometry.pads
    view = functional.pad(x, (left, right, top, bottom))
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * geometry.dilations[axis] + 1
        view = view.unfold(2 + axis, reach, geometry.strides[axis])[..., :: geometry.dilations[axis]]
    samples, _, height, width = view.shape[:4]
    count = samples * height * width
    # An odd distance does not fall in step with the rows of an image.
    places = torch.arange(0, count, -(-count // MAX_PATCHES) | 1)
    rows = view[places // (height * width), :, places // width % height, places % width]
    return rows.reshape(len(places), geometry.groups, -1).transpose(0, 1).contiguous()
