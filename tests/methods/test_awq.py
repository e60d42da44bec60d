"""Protected weights: the product stays what it was in float, and loses less in 3 and 4 bits."""

import pytest
import torch

from fewbits.methods.awq import find_protection
from fewbits.numerics import quantize


def layer(seed, outliers=4, size=30.0, inputs=128, outputs=(48,)):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(400, inputs, generator=draw)
    x[:, :outliers] *= size
    weights = [torch.randn(inputs, count, generator=draw) / inputs**0.5 for count in outputs]
    for weight in weights:
        weight[:outliers] /= 10  # as in transformers: what meets large activations is small
    return x, weights


def rounding(bits):
    def rounded(weight):
        return quantize(weight, f"int{bits}", channel_axis=1, group_size=64, search="mse").dequantize()

    return rounded


def lost(x, weights, divisor, rounded):
    divisor = torch.ones(x.shape[1]) if divisor is None else divisor
    pairs = [((x / divisor) @ rounded(weight * divisor[:, None]), x @ weight) for weight in weights]
    return sum(float((got - target).square().sum() / target.square().sum()) for got, target in pairs)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("outputs", [(48,), (16, 32)])
def test_it_loses_less_than_half_of_what_rounding_to_nearest_loses(bits, outputs):
    x, weights = layer(bits, outputs=outputs)
    found = find_protection(x[::2], weights, rounding(bits))
    assert found[:4].min() > found[4:].max()
    assert lost(x[1::2], weights, found, rounding(bits)) < lost(x[1::2], weights, None, rounding(bits)) / 2


def test_the_strength_is_each_layers_own_and_better_than_one_half():
    strengths = []
    for outliers, size in ((4, 30.0), (2, 300.0)):
        x, weights = layer(0, outliers, size)
        divisor, reach = find_protection(x[::2], weights, rounding(3)), x[::2].abs().mean(dim=0)
        found = lost(x[1::2], weights, divisor, rounding(3))
        assert found < 0.85 * lost(x[1::2], weights, reach.sqrt(), rounding(3))
        strengths.append(
            round(float((divisor.max() / divisor.min()).log() / (reach.max() / reach.min()).log()), 2)
        )
    assert strengths == [0.7, 0.9]


def test_the_product_is_the_same_in_float():
    x, (weight,) = layer(0)
    found = find_protection(x, [weight], rounding(4))
    torch.testing.assert_close((x / found) @ (weight * found[:, None]), x @ weight, rtol=1e-3, atol=1e-2)


def test_channels_that_are_always_zero_are_no_trouble():
    x, weights = layer(1)
    x[:, 7] = 0
    assert torch.isfinite(find_protection(x, weights, rounding(4))).all()
    assert find_protection(torch.zeros_like(x), weights, rounding(4)) is None
