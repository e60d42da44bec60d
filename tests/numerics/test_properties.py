"""What holds of every scheme, for every finite input: thousands of examples of each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.numerics import quantize, unpack
from tests.numerics.schemes import (
    FINITE,
    INT_ROWS,
    SCHEMES,
    SMALLEST,
    SYMMETRIC,
    WHOLE_RANGE,
    again,
    arrays,
    distance_to_levels,
    each,
    granularities,
    in_shape,
)

THOUSANDS = settings(max_examples=2000, deadline=None)


def quantized(data: st.DataObject, scheme: str, x: torch.Tensor, **words):
    rows, settings_of_scheme = SCHEMES[scheme]
    return quantize(x, data.draw(st.sampled_from(rows)), **settings_of_scheme, **words)


@pytest.mark.parametrize("scheme", SCHEMES)
@THOUSANDS
@given(x=arrays(), data=st.data())
def test_every_finite_input(scheme, x, data):
    """Scales are finite and normal, the codes are the nearest, their bytes come back, and again is the same."""
    x = in_shape(scheme, x)
    q = quantized(data, scheme, x, **data.draw(st.sampled_from(granularities(scheme))))
    values = q.dequantize()
    assert torch.isfinite(values).all()
    if q.scale is not None:
        assert torch.isfinite(q.scale).all()
        assert (q.scale >= (0 if scheme == "binary" else SMALLEST)).all()
    assert torch.equal(unpack(q.packed(), q.qtype, q.shape), q.codes)

    error = (values.double() - x.double()).abs()
    # A division and a product round once each in float32; a free zero point adds its own size to that.
    rounding = x.double().abs() * 2**-22 + 2**-149
    if q.free_zero_point is not None:
        rounding += (each(q, q.free_zero_point).double().abs() + 2) * each(q, q.scale).double() * 2**-22
    if scheme != "ternary":  # whose threshold is not halfway, see test_binary
        lowest = q.qtype.qmin + (scheme in SYMMETRIC)
        assert (error <= distance_to_levels(q, x, lowest) * (1 + 2**-40) + rounding).all()
    if scheme in WHOLE_RANGE:
        # The scale is a float32: over 65,535 steps that is a few thousandths of a step at the ends.
        ends = x.double().abs().max() * 2**-22
        assert (error <= each(q, q.scale).double() / 2 + rounding + ends).all()

    if scheme in ("binary", "ternary"):
        same = quantize(values, q.qtype, channel_axis=q.channel_axis, group_size=q.group_size)
        used = each(q, q.scale) > 0
        assert torch.equal(same.codes[used], q.codes[used])
    elif q.free_zero_point is None:
        same = again(q, values)
        assert torch.equal(same.dequantize(), values)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=1000, deadline=None)
@given(x=arrays(), data=st.data())
def test_channel_permutation_commutes(scheme, x, data):
    x = in_shape(scheme, x)
    order = data.draw(st.permutations(range(len(x))))
    words = {"channel_axis": 0}
    if scheme not in ("mx", "nvfp4"):
        words["group_size"] = data.draw(st.sampled_from([None, 2, 4]))
    row = data.draw(st.sampled_from(SCHEMES[scheme][0]))
    first = quantize(x[order], row, **words, **SCHEMES[scheme][1])
    after = quantize(x, row, **words, **SCHEMES[scheme][1])
    assert torch.equal(first.dequantize(), after.dequantize()[order])
    if first.codebook is None:  # in which unused entries may come and go with other rows
        assert torch.equal(first.codes, after.codes[order])
        assert torch.equal(first.scale, after.scale[order])


@THOUSANDS
@given(value=FINITE, qtype=st.sampled_from(INT_ROWS), symmetric=st.booleans())
def test_constants_are_exact(value, qtype, symmetric):
    x = torch.full((3, 4), value)
    got = quantize(x, qtype, symmetric=symmetric, channel_axis=0).dequantize()
    # Below the smallest scale only a multiple of it can be had.
    expected = x if abs(value) >= SMALLEST else torch.round(x / SMALLEST) * SMALLEST
    assert torch.equal(got, expected)
