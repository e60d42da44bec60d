"""The compiled kernels give what the tensors' rules give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.numerics import find, quantize, quantize_with
from fewbits.numerics.affine import CodeRange
from fewbits.numerics.search.least_error import LikelyRanges

compiled = pytest.importorskip("fewbits.numerics.compiled", reason="numba is not installed")

CODES = CodeRange(-compiled.QMAX, compiled.QMAX, symmetric=True)


def groups(seed, count=64, length=128, tails=1.0, scale=1.0):
    """Groups of normal numbers, some of one value and some of none, in bfloat16."""
    values = torch.randn(count, length, generator=torch.Generator().manual_seed(seed))
    values = values.abs().pow(tails) * values.sign() * scale
    values[0], values[1], values[2] = 0, values[2, 0], -0.0
    return values.bfloat16()


def shares(length):
    return torch.tensor(LikelyRanges().shares(length, CODES))


def codes_of(packed, length):
    return (torch.stack([packed & 15, packed >> 4], dim=-1).reshape(-1, length).to(torch.int8)) - 8


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1 << 16),
    st.sampled_from([8, 32, 128]),
    st.floats(0.5, 3),
    st.sampled_from([1e-38, 1e-4, 1.0, 1e30]),
)
def test_steps_and_codes_are_those_of_the_rules(seed, length, tails, scale):
    values = groups(seed, length=length, tails=tails, scale=scale)
    expected = quantize(values, find("int4"), group_size=length, channel_axis=0, search="likely")
    steps = compiled.steps(values, shares(length))
    torch.testing.assert_close(steps, expected.scale, rtol=1e-5, atol=0)
    whole = quantize(values, find("int4"), group_size=length, channel_axis=0)
    assert torch.equal(compiled.steps(values, torch.empty(0)), whole.scale)
    exact = quantize_with(values, find("int4"), steps, group_size=length, channel_axis=0, qmin=-7)
    assert torch.equal(codes_of(compiled.packed(values, steps), length), exact.codes)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 16), st.sampled_from([8, 128]))
def test_errors_are_those_of_codes_brought_back(seed, length):
    values = groups(seed, length=length)
    stored = compiled.steps(values, shares(length)).bfloat16().float()
    packed = compiled.packed(values, stored)
    lost = (codes_of(packed, length).bfloat16() * stored.bfloat16()).double() - values.double()
    signal, noise = compiled.energies(values, packed, stored)
    assert signal == pytest.approx(values.double().square().sum().item(), rel=1e-5)
    assert noise == pytest.approx(lost.square().sum().item(), rel=1e-4)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_told(wrong):
    values = groups(0)
    values[5, 77] = wrong
    finite = torch.isfinite(compiled.steps(values, shares(128)))
    assert not finite[5] and int(finite.sum()) == len(values) - 1
