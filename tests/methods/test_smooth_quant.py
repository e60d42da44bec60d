"""Smoothing: the product stays what it was in float, and loses less, or nothing is done."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.methods.smooth_quant import balance, fake_quantize, find_smoothing
from fewbits.numerics import quantize

LEVELS = 256


def rounded(weight):
    """int8 with a scale per output."""
    return quantize(weight, "int8", channel_axis=1).dequantize()


def layer(seed, outliers=0, size=40.0, rows=200, inputs=24, outputs=(16,)):
    """Activations with a few channels that are ``size`` times larger, and the weights of the layers they meet."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=rng)
    x[:, :outliers] *= size
    return x, [torch.randn(inputs, count, generator=rng) / inputs**0.5 for count in outputs]


def lost(x, weights, divisor, low, high):
    """Squared error of the products with both sides rounded over their energy, row by row, in numpy and float64."""
    s = np.ones(x.shape[1]) if divisor is None else divisor.double().numpy()
    step = (high - low) / (LEVELS - 1)
    zero = np.round(-low / step)
    codes = np.clip(np.round(x.double().numpy() / s / step) + zero, 0, LEVELS - 1)
    noise = energy = 0.0
    for weight in weights:
        exact = x.double().numpy() @ weight.double().numpy()
        scaled = torch.from_numpy(s[:, None]).float() * weight
        noise += np.square((codes - zero) * step @ rounded(scaled).double().numpy() - exact).sum(axis=1)
        energy += np.square(exact).sum(axis=1)
    return float(np.mean(noise / energy))


def found_for(x, weights):
    return find_smoothing(x, x.amin(dim=0), x.amax(dim=0), weights, rounded, LEVELS)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4), st.floats(1, 300), st.sampled_from([(16,), (8, 24)]))
def test_the_product_is_the_same_in_float_and_loses_no_more_than_before(seed, outliers, size, outputs):
    x, weights = layer(seed, outliers, size, outputs=outputs)
    found = found_for(x, weights)
    if found.divisor is not None:
        assert (found.divisor > 0).all()
        for weight in weights:
            product = (x / found.divisor) @ (found.divisor[:, None] * weight)
            torch.testing.assert_close(product, x @ weight, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
    before = lost(x, weights, None, min(float(x.min()), 0), max(float(x.max()), 0))
    after = lost(x, weights, found.divisor, found.low, found.high)
    assert after <= 1.001 * before
    assert found.error == pytest.approx(after, rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_outliers_are_moved_where_it_helps(seed):
    x, weights = layer(seed, outliers=2, size=100.0)
    found = found_for(x, weights)
    assert found.divisor is not None
    before = lost(x, weights, None, float(x.min()), float(x.max()))
    assert found.error < before / 4
    assert found.divisor[:2].min() > found.divisor[2:].max()


def test_the_strength_is_each_layers_own_and_better_than_one_half():
    found = []
    for size, met in ((30.0, 1.0), (5.0, 0.1)):
        x, (weight,) = layer(0, outliers=12, size=size)
        weight[:12] *= met  # as large as the others, or smaller, as if something had been moved already
        found.append(one := found_for(x, [weight]))
        low, high = x.amin(dim=0), x.amax(dim=0)
        half = balance(low, high, [weight], 0.5)
        fixed = lost(x, [weight], half, float((low / half).min()), float((high / half).max()))
        assert one.error < 0.9 * fixed
        assert torch.allclose(one.divisor, balance(low, high, [weight], 1.0)) == (met < 1)


def test_every_row_is_inside_the_range():
    x, weights = layer(0, outliers=3, rows=2000)
    found = found_for(x, weights)
    divided = x / found.divisor
    assert found.low <= float(divided.min())
    assert float(divided.max()) <= found.high


def test_extremes_beyond_the_rows_are_inside_the_range():
    x, weights = layer(0, outliers=3)
    found = find_smoothing(x, 2 * x.amin(dim=0), 3 * x.amax(dim=0), weights, rounded, LEVELS)
    divisor = torch.ones(x.shape[1]) if found.divisor is None else found.divisor
    assert found.low <= float((2 * x.amin(dim=0) / divisor).min())
    assert found.high >= float((3 * x.amax(dim=0) / divisor).max())


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_half_strength_gives_both_sides_the_same_reach(seed):
    x, (weight,) = layer(seed, outliers=2)
    low, high = x.amin(dim=0), x.amax(dim=0)
    divisor = balance(low, high, [weight], 0.5)
    ratio = (x.abs().amax(dim=0) / divisor) / (weight.abs().amax(dim=1) * divisor)
    torch.testing.assert_close(ratio, ratio[:1].expand(len(ratio)), rtol=1e-3, atol=0)
    assert float(divisor.log().mean()) == pytest.approx(0, abs=1e-4)


def test_channels_that_are_always_zero_are_no_trouble():
    x, weights = layer(0, outliers=1)
    x[:, 5] = 0
    weights[0][7] = 0
    found = found_for(x, weights)
    assert np.isfinite(found.error)
    assert found.divisor is None or torch.isfinite(found.divisor).all()


def test_nothing_but_zeros():
    x, weights = layer(0)
    assert found_for(torch.zeros_like(x), weights).error == 0


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(-50, 0), st.floats(0.01, 50), st.sampled_from([4, 16, 256]))
def test_fake_quantize_rounds_to_the_nearest_level_with_zero_among_them(seed, low, high, levels):
    x = 40 * torch.randn(300, generator=torch.Generator().manual_seed(seed))
    got = fake_quantize(x, low, high, levels)
    step = (high - low) / (levels - 1)
    zero = round(-low / step)
    grid = (torch.arange(levels).double() - zero) * step
    assert float(fake_quantize(torch.zeros(1), low, high, levels)) == 0
    nearest = (x.double()[:, None] - grid).abs().amin(dim=1)
    torch.testing.assert_close((x.double() - got.double()).abs(), nearest, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fake_quantize(got, low, high, levels), got)
