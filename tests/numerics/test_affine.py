"""Uniform quantization: the formulas, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.numerics import quantize, quantize_with, scale_zero_point, textbook_scale
from tests.numerics.schemes import INT_ROWS

ENDS = st.floats(-1000, 1000, width=32)


@pytest.mark.parametrize("qtype", INT_ROWS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_channels_are_exact_zeros(qtype, symmetric):
    x = torch.randn(3, 8)
    x[1] = 0
    q = quantize(x, qtype, channel_axis=0, symmetric=symmetric)
    assert (q.dequantize()[1] == 0).all()
    assert q.scale[1] == 1


@settings(max_examples=2000, deadline=None)
@given(
    low=st.floats(-(2.0**100), 0, width=32),
    high=st.floats(0, 2.0**100, width=32),
    bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8]),
)
def test_textbook_formula_is_the_general_one(low, high, bits):
    scale, zero_point = scale_zero_point(torch.tensor(low), torch.tensor(high), f"uint{bits}")
    tiny = torch.finfo(torch.float32).tiny
    expected = textbook_scale(low, high, bits)
    expected = 1.0 if expected == 0 else max(expected, tiny)
    assert float(scale) == pytest.approx(expected, rel=3e-7)
    assert 0 <= int(zero_point) <= 2**bits - 1


def test_half_to_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    codes = quantize_with(x, "int8", torch.tensor(1.0)).codes
    assert codes.tolist() == [-2, -2, 0, 0, 2, 2, 4]


def test_ranges_of_codes():
    x = torch.tensor([-1.0, 1.0, 0.6])
    assert quantize(x, "int8").codes.tolist() == [-127, 127, 76]
    assert quantize(x, "int4").codes.tolist() == [-7, 7, 4]
    assert quantize(x, "int8", symmetric=False).codes.tolist() == [-128, 126, 75]
    assert quantize(x, "uint8").codes.tolist() == [0, 254, 203]
    q = quantize(x, "uint8", symmetric=True)
    assert q.codes.tolist() == [1, 255, 204]
    assert q.zero_point == 128
    assert quantize(x, "int8", qmin=-64, qmax=63, symmetric=False).codes.tolist() == [-64, 63, 38]
    assert quantize(x, "int8", qmin=-128, qmax=127).scale == pytest.approx(1 / 127)


def test_given_parameters_by_hand():
    x = torch.tensor([[1.0, -1.0, 4.0, 300.0], [0.5, 0.25, -300.0, torch.inf]])
    q = quantize_with(x, "uint8", torch.tensor([0.5, 0.25]), torch.tensor([10, 20]), channel_axis=0)
    assert q.codes.tolist() == [[12, 8, 18, 255], [22, 21, 0, 255]]
    assert q.codes.dtype == torch.uint8
    assert q.dequantize()[0].tolist() == [1.0, -1.0, 4.0, 122.5]


def test_groups_run_along_the_rest_of_a_channel():
    x = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4) + 1
    q = quantize(x, "int8", channel_axis=0, group_size=6)
    assert q.scale.shape == (2, 2)
    assert torch.allclose(q.scale, x.reshape(2, 2, 6).amax(-1) / 127)
    by_last = quantize(x, "int8", channel_axis=2, group_size=3)
    assert torch.allclose(by_last.scale, x.movedim(2, 0).reshape(4, 2, 3).amax(-1) / 127)
    assert torch.equal(
        by_last.codes,
        quantize(x.movedim(2, 0).contiguous(), "int8", channel_axis=0, group_size=3).codes.movedim(0, 2),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_compute_in_float32(dtype):
    x = torch.randn(8, 16).to(dtype)
    q, reference = quantize(x, "int4", channel_axis=0), quantize(x.float(), "int4", channel_axis=0)
    assert torch.equal(q.codes, reference.codes)
    assert torch.equal(q.scale, reference.scale)


def test_blocks_do_not_show():
    """More than a block of elements gives what small pieces give."""
    x = torch.randn(6, 100_000)
    whole = quantize(x, "int4", channel_axis=0, group_size=1000)
    pieces = [quantize(row, "int4", group_size=1000) for row in x]
    assert torch.equal(whole.codes, torch.stack([p.codes for p in pieces]))
    long = quantize(x, "uint8")
    assert torch.equal(long.codes, quantize_with(x, "uint8", long.scale, long.zero_point).codes)
    columns = quantize(x.T, "int4", channel_axis=1, group_size=1000)
    assert torch.equal(columns.codes, whole.codes.T)
    assert torch.equal(columns.scale, whole.scale)


@settings(max_examples=300, deadline=None)
@given(ends=st.tuples(ENDS, ENDS), qtype=st.sampled_from(INT_ROWS), symmetric=st.booleans())
def test_zero_is_always_a_code(ends, qtype, symmetric):
    low, high = sorted(ends)
    scale, zero_point = scale_zero_point(torch.tensor(low), torch.tensor(high), qtype, symmetric=symmetric)
    q = quantize_with(torch.zeros(2), qtype, scale, zero_point)
    assert (q.dequantize() == 0).all()
