"""Range searches against brute force and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.errors import InputError
from fewbits.numerics import SEARCHES, Percentile, find, quantize, quantize_with, table
from tests.numerics.schemes import GRANULARITIES, SMALLEST, arrays, each

SHAPES = {
    "gauss": lambda g, *shape: torch.randn(*shape, generator=g),
    "laplace": lambda g, *shape: torch.randn(*shape, generator=g) * torch.randn(*shape, generator=g).abs(),
    "cube": lambda g, *shape: torch.randn(*shape, generator=g) ** 3,
    "one-sided": lambda g, *shape: torch.randn(*shape, generator=g).clamp(min=0),
}


def brute_force(row: torch.Tensor, qtype: str) -> float:
    """The least error over 2,000 steps of the whole range's zero point, exact in float64."""
    whole = quantize(row, qtype)
    kind = find(qtype)
    zero = 0 if whole.zero_point is None else int(whole.zero_point)
    low, high = (kind.qmin + kind.signed) - zero, kind.qmax - zero
    scale = float(whole.scale) * np.linspace(0.01, 1.2, 2000)[:, None]
    x = row.double().numpy()[None]
    return float((((x / scale).round().clip(low, high) * scale - x) ** 2).mean(axis=1).min())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("qtype", ["int2", "int3", "int4", "uint4", "int8", "uint8"])
def test_least_error_is_that_of_brute_force(shape, qtype):
    x = SHAPES[shape](torch.Generator().manual_seed(0), 24, 256)
    rows = quantize(x, qtype, channel_axis=0, search="mse")
    found = (rows.dequantize().double() - x.double()).square().mean(dim=1)
    best = torch.tensor([brute_force(row, qtype) for row in x], dtype=torch.float64)
    # With many codes to a few values, some steps among thousands fit by luck.
    assert float(found.sum() / best.sum()) <= (1.01 if find(qtype).bits <= 4 else 1.15)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("qtype", "length"), [("int2", 32), ("int3", 64), ("int4", 128), ("int4", 1024)])
def test_few_likely_ranges_are_nearly_as_good_as_all(shape, qtype, length):
    x = SHAPES[shape](torch.Generator().manual_seed(0), 500, length)
    whole, likely, least = (
        quantize(x, qtype, channel_axis=0, search=search).error(x).sqnr_db
        for search in ("minmax", "likely", "mse")
    )
    assert least - likely < min(0.1, 0.25 * (least - whole))


@pytest.mark.parametrize("qtype", ["int2", "int3", "int4", "uint4", "int8"])
def test_likely_ranges_leave_what_lies_on_a_grid_as_it_is(qtype):
    row = find(qtype)
    low, high = row.qmin + row.signed, row.qmax
    codes = torch.randint(low, high + 1, (50, 64), generator=torch.Generator().manual_seed(0))
    codes[:, :2] = torch.tensor([low, high])
    x = (codes - (0 if row.signed else 5)) * torch.logspace(-6, 6, 50)[:, None]
    found = quantize(x, qtype, channel_axis=0, search="likely")
    assert torch.allclose(found.dequantize(), x, rtol=1e-6, atol=0)
    assert torch.equal(quantize(torch.zeros(1, 64), qtype, search="likely").scale, torch.tensor(1.0))


@pytest.mark.parametrize("qtype", ["int3", "uint4", "int8"])
def test_long_rows_are_searched_as_well_as_short_ones(qtype):
    x = torch.randn(1 << 19, generator=torch.Generator().manual_seed(0))
    whole = quantize(x, qtype, search="mse").error(x).mse
    plain, row = quantize(x, qtype), find(qtype)
    ends = {"qmin": row.qmin + row.signed, "qmax": row.qmax}
    tries = [
        quantize_with(x, qtype, plain.scale * f, plain.zero_point, **ends) for f in np.linspace(0.2, 1, 25)
    ]
    best = min(q.error(x).mse for q in tries)
    assert whole <= best * 1.01


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=300, deadline=None)
@given(
    x=arrays(),
    qtype=st.sampled_from(["int2", "uint3", "int4", "uint4", "int8", "uint8"]),
    words=st.sampled_from(list(GRANULARITIES.values())),
)
def test_every_search_survives_every_finite_input(search, x, qtype, words):
    q = quantize(x, qtype, search=search, **words)
    assert torch.isfinite(q.scale).all()
    assert (q.scale > 0).all()
    assert torch.isfinite(q.dequantize()).all()


@pytest.mark.parametrize(
    ("kind", "search"),
    [("int", "mse"), ("float", "mse"), ("codebook", "mse"), ("ternary", "mse"), ("int", "likely")],
)
@settings(max_examples=1000, deadline=None)
@given(x=arrays(), data=st.data())
def test_least_error_is_never_worse_than_the_whole_range(kind, search, x, data):
    rows = [r.name for r in table() if r.kind == kind and not r.group_size and r.name != "e8m0"]
    qtype = data.draw(st.sampled_from([name for name in rows if find(name).levels or kind != "codebook"]))
    whole, least = (quantize(x, qtype, channel_axis=0, search=name) for name in ("minmax", search))
    step = each(whole, whole.scale).double()
    noise = [((q.dequantize().double() - x.double()) / step).square().sum(dim=1) for q in (least, whole)]
    noise[0][whole.scale == SMALLEST] = 0  # the best scale may be below the smallest
    # Each product is rounded to float32.
    rounding = ((x.double() * 2**-22 + 2**-149) / step).square().sum(dim=1)
    assert (noise[0].sqrt() <= noise[1].sqrt() * (1 + 1e-4) + rounding.sqrt()).all()


def test_least_squares_beats_every_integer_zero_point():
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    power = float(x.square().mean())
    relative = {s: quantize(x, "uint4", channel_axis=0, search=s).error(x).mse / power for s in SEARCHES}
    assert relative["least_squares"] < relative["half_quadratic"] < relative["minmax"]
    assert relative["least_squares"] < relative["mse"] < relative["minmax"]
    assert relative["least_squares"] < 0.0074


def test_free_zero_points_are_kept():
    x = torch.randn(8, 64) + 10
    for search in ("least_squares", "half_quadratic"):
        q = quantize(x, "uint4", channel_axis=0, search=search)
        assert q.zero_point is None
        assert q.free_zero_point.dtype == torch.float32
        by_hand = (q.codes.float() - q.free_zero_point[:, None]) * q.scale[:, None]
        assert torch.allclose(q.dequantize(), by_hand)
        assert q.nbytes == 8 * 32 + 8 * 4 + 8 * 4
        # All codes serve the range itself, which is far from zero.
        assert q.error(x).mse < 0.5 * quantize(x, "uint4", channel_axis=0).error(x).mse


def test_half_quadratic_minimizes_the_norm_it_names():
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    x[:, ::17] *= 8
    found = quantize(x, "uint4", channel_axis=0, search="half_quadratic")
    plain = quantize(x, "uint4", channel_axis=0)
    norm = [(q.dequantize() - x).abs().pow(0.7).mean() for q in (found, plain)]
    assert norm[0] < norm[1]


@pytest.mark.parametrize("inside", [100.0, 99.9, 99.0, 90.0])
@pytest.mark.parametrize("count", [1000, 600_000])
def test_percentile_is_that_of_numpy(inside, count):
    x = torch.randn(count, generator=torch.Generator().manual_seed(1))
    q = quantize(x, "uint8", search=Percentile(inside))
    low, high = np.percentile(x.double().numpy(), [(100 - inside) / 2, 100 - (100 - inside) / 2])
    tolerance = 1e-5 if count == 1000 else 2e-3
    assert float(q.scale) == pytest.approx((high - low) / 255, rel=tolerance)


def test_percentile_leaves_outliers_out():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    x[0] = 1e6
    assert quantize(x, "int8", search="percentile").scale < 0.1
    assert quantize(x, "int8").scale > 1000
    with pytest.raises(InputError, match="percentile is above 0"):
        Percentile(0)


def divergence(x: np.ndarray, threshold: float, levels: int) -> float:
    """Migacz's divergence of |x| clipped at a threshold, written out bin by bin."""
    counts, edges = np.histogram(x, 2048, (x.min(), x.max()))
    centers = (edges[1:] + edges[:-1]) / 2
    inside = np.abs(centers) <= threshold
    p = np.where(inside, counts, 0).astype(float)
    first, last = np.flatnonzero(inside)[[0, -1]]
    p[first] += counts[centers < -threshold].sum()
    p[last] += counts[centers > threshold].sum()
    code = (centers / (threshold / levels)).round().clip(-levels, levels)
    q = np.zeros_like(p)
    for c in np.unique(code[inside]):
        here = inside & (code == c) & (counts > 0)
        q[here] = counts[here].mean() if here.any() else 0
    p, q = p / p.sum(), (q / q.sum()).clip(1e-12)
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


def test_entropy_is_the_least_divergence():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, torch.tensor([-30.0, 30.0])])
    found = float(quantize(x, "int8", search="entropy").scale) * 127
    candidates = 30.0 * np.linspace(0.05, 1, 64)
    by_hand = [divergence(x.double().numpy(), t, 127) for t in candidates]
    assert divergence(x.double().numpy(), found, 127) <= min(by_hand) * 1.02 + 1e-6
    assert found < 10


@pytest.mark.parametrize("qtype", ["nf4", "fp4_e2m1", "int4", "int8", "mxfp4"])
def test_a_scale_that_is_found_does_not_overflow(qtype):
    """One value near the largest float: a step with which an inner level meets it exactly would be infinite."""
    for value in (2.38e38, -2.38e38, 3.4e38, -3.4e38):
        x = torch.zeros(1, 32)
        x[0, 5] = value
        words = {} if qtype == "mxfp4" else {"channel_axis": 0}
        assert torch.isfinite(quantize(x, qtype, search="mse", **words).dequantize()).all()
