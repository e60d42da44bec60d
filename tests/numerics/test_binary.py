"""Binary and ternary scales against their definitions and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fewbits.numerics import quantize
from tests.numerics.schemes import GRANULARITIES, arrays


@pytest.mark.parametrize("granularity", GRANULARITIES)
@settings(max_examples=500, deadline=None)
@given(x=arrays())
def test_binary_is_sign_times_mean_magnitude(granularity, x):
    q = quantize(x, "binary", **GRANULARITIES[granularity])
    rows = q.layout.split(x).double()
    assert torch.equal(q.codes, torch.where(x < 0, -1, 1).to(torch.int8))
    assert torch.allclose(
        q.layout.spread(q.scale).double(), rows.abs().mean(-1, keepdim=True), rtol=1e-6, atol=1e-44
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@settings(max_examples=500, deadline=None)
@given(x=arrays(moderate=True))
def test_ternary_is_twn(granularity, x):
    q = quantize(x, "ternary", **GRANULARITIES[granularity])
    rows, codes = q.layout.split(x).double(), q.layout.split(q.codes)
    threshold = 0.7 * rows.abs().mean(-1, keepdim=True)
    near = (rows.abs() - threshold).abs() <= 1e-6 * threshold
    expected = torch.where(rows.abs() > threshold, rows.sign(), 0)
    assert ((codes == expected) | near).all()
    kept = codes != 0
    mean = (rows.abs() * kept).sum(-1) / kept.sum(-1).clamp(min=1)
    scale = q.layout.spread(q.scale).squeeze(-1).double()
    assert torch.allclose(scale[kept.any(-1)], mean[kept.any(-1)].clamp(min=2.0**-126), rtol=1e-6)


def test_least_error_ternary_is_that_of_brute_force():
    random = np.random.default_rng(0)
    for _ in range(200):
        x = random.standard_normal(12).astype(np.float32) ** 3
        size = np.sort(np.abs(x.astype(np.float64)))[::-1]
        kept = np.arange(1, 13)
        best = (size**2).sum() - (size.cumsum() ** 2 / kept).max()
        q = quantize(torch.from_numpy(x), "ternary", search="mse")
        assert q.error(torch.from_numpy(x)).mse * 12 == pytest.approx(best, rel=1e-5, abs=1e-9)


def test_rows_of_zeros_are_exact():
    x = torch.zeros(3, 8)
    x[0] = 1.5
    for qtype in ("binary", "ternary"):
        assert torch.equal(quantize(x, qtype, channel_axis=0).dequantize(), x)


def test_long_rows():
    x = torch.randn(600_000, generator=torch.Generator().manual_seed(0))
    assert float(quantize(x, "binary").scale) == pytest.approx(float(x.double().abs().mean()), rel=1e-6)
    q = quantize(x, "ternary")
    kept = x.abs().double()[q.codes != 0]
    assert float(q.scale) == pytest.approx(float(kept.mean()), rel=1e-6)
    # Gauss: the best threshold is 0.6120 and leaves 0.1902 (the 3-level quantizer of Max 1960).
    assert quantize(x, "ternary", search="mse").error(x).mse == pytest.approx(0.1902, rel=0.01)


def test_a_row_with_next_to_nothing_in_it_has_a_scale():
    smallest = 2.0**-149
    found = quantize(torch.tensor([[0.0, 0, 0, 2 * smallest], [0.0, 0, 0, 0]]), "binary", channel_axis=0)
    assert found.scale.tolist() == [smallest, 0.0]
