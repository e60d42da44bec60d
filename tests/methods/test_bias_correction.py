"""Bias correction: the mean output is what it was, and outputs are closer than with weights rounded to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fewbits.methods.bias_correction import analytic_shift, empirical_shift, mean_of_clipped
from fewbits.methods.equalization import grouped
from fewbits.numerics import quantize

INFINITE = float("inf")


@settings(deadline=None, max_examples=40)
@given(
    st.floats(-4, 4),
    st.floats(0, 3),
    st.sampled_from([(0, INFINITE), (0, 6), (-1, 1), (-INFINITE, INFINITE)]),
)
def test_the_mean_of_a_normal_variable_that_is_cut(mean, std, ends):
    drawn = mean + std * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    got = mean_of_clipped(torch.tensor([mean]), torch.tensor([std]), *ends)
    assert float(got) == pytest.approx(float(drawn.clamp(*ends).mean()), abs=0.02 + 0.01 * std)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_outputs_are_closer_than_rounded_to_nearest(groups):
    draw = torch.Generator().manual_seed(groups)
    mean, std = 2 * torch.randn(16, generator=draw), torch.rand(16, generator=draw)
    hidden = (mean[:, None, None] + std[:, None, None] * torch.randn(64, 16, 8, 8, generator=draw)).relu()
    weight = torch.randn(32, 16 // groups, 3, 3, generator=draw)
    rounded = quantize(weight, "int3", channel_axis=0).dequantize()
    exact, plain = (functional.conv2d(hidden, one, groups=groups) for one in (weight, rounded))
    parts = [grouped(one, 16) for one in (weight, rounded)]
    analytic = analytic_shift(*parts, mean_of_clipped(mean, std, 0.0, INFINITE))
    empirical = empirical_shift(exact, plain, 1)
    noise = [
        float((plain + shift.reshape(-1, 1, 1) - exact).square().sum())
        for shift in (torch.zeros(32), analytic, empirical)
    ]
    assert noise[2] <= noise[1] < noise[0] / 2
    torch.testing.assert_close(
        (plain + empirical.reshape(-1, 1, 1) - exact).mean(dim=(0, 2, 3)), torch.zeros(32)
    )
