"""A convolution as a matrix product, against torch's own convolution."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fewbits.methods.patches import MAX_PATCHES, patches
from fewbits.planning.model_info import ConvGeometry


def convolved(x, weight, geometry):
    """[outputs, places], by torch, with padding that may differ between begin and end."""
    axes = weight.dim() - 2
    pads = [geometry.pads[side * axes + axis] for axis in reversed(range(axes)) for side in (0, 1)]
    run = functional.conv2d if axes == 2 else functional.conv1d
    y = run(
        functional.pad(x, pads),
        weight,
        stride=geometry.strides,
        dilation=geometry.dilations,
        groups=geometry.groups,
    )
    return y.transpose(0, 1).reshape(len(weight), -1)


def product(x, weight, geometry):
    """The same by patches."""
    rows = patches(x, tuple(weight.shape[2:]), geometry)
    matrix = weight.reshape(geometry.groups, -1, rows.shape[-1])
    return (matrix @ rows.transpose(1, 2)).reshape(len(weight), -1)


@settings(deadline=None)
@given(st.data())
def test_the_product_is_the_convolution(data):
    axes = data.draw(st.sampled_from([1, 2]))

    def each(least, most, count=axes):
        return tuple(data.draw(st.lists(st.integers(least, most), min_size=count, max_size=count)))

    geometry = ConvGeometry(each(1, 3), each(0, 3, 2 * axes), each(1, 3), data.draw(st.integers(1, 3)))
    kernel, space = each(1, 4), each(1, 9)
    samples, per_group, outputs = each(1, 3, 3)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, geometry.dilations, strict=True)]
    padded = [n + geometry.pads[i] + geometry.pads[i + axes] for i, n in enumerate(space)]
    assume(all(r <= n for r, n in zip(reach, padded, strict=True)))
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(samples, per_group * geometry.groups, *space, generator=rng)
    weight = torch.randn(outputs * geometry.groups, per_group, *kernel, generator=rng)
    torch.testing.assert_close(product(x, weight, geometry), convolved(x, weight, geometry))


@pytest.mark.parametrize("samples", [4, 5, 64])
def test_no_more_than_the_bound_spread_over_all_places(samples):
    geometry = ConvGeometry((1, 1), (1, 1, 1, 1), (1, 1), 2)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, 32, 32, generator=rng)
    weight = torch.randn(6, 2, 3, 3, generator=rng)
    got, everything = product(x, weight, geometry), convolved(x, weight, geometry)
    assert got.shape[1] <= MAX_PATCHES
    distance = -(-everything.shape[1] // MAX_PATCHES)
    distance += distance % 2 == 0
    torch.testing.assert_close(got, everything[:, ::distance])
    assert got.shape[1] > MAX_PATCHES / 3


def test_places_do_not_fall_in_step_with_the_rows_of_an_image():
    """Every column of the image is seen."""
    geometry = ConvGeometry((1, 1), (0, 0, 0, 0), (1, 1), 1)
    x = torch.arange(64.0).expand(16, 1, 64, 64).contiguous()
    (rows,) = patches(x, (1, 1), geometry)
    assert len(rows.unique()) == 64


def test_three_axes_of_space_are_left_out():
    geometry = ConvGeometry((1, 1, 1), (0,) * 6, (1, 1, 1), 1)
    assert patches(torch.zeros(1, 2, 4, 4, 4), (3, 3, 3), geometry) is None
