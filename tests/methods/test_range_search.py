"""Clipping ranges, against every range of a grid, tried one by one on the values themselves."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fewbits.errors import InputError
from fewbits.methods.range_search import entropy, minmax, mse, percentile, search, squared_error
from fewbits.methods.rounding import round_weight
from fewbits.planning.recipe import Recipe, Rule, assign
from fewbits.planning.scheme import RANGE_KINDS, Scheme
from fewbits.planning.stats import Histogram, HistogramBuilder
from tests.planning.layers import info, layer

FRACTIONS = np.linspace(0.125, 1, 36)  # every fourth of those that the search tries
DRAWS = {
    "normal": lambda rng: rng.standard_normal(4000),
    "heavy tails": lambda rng: rng.standard_t(2, 4000),
    "one side": lambda rng: np.maximum(rng.standard_normal(4000), 0),
    "an outlier": lambda rng: np.append(np.abs(rng.standard_normal(4000)), 40.0),
    "lopsided": lambda rng: np.append(rng.exponential(1.0, 4000), -rng.exponential(0.1, 2000)),
    "negative": lambda rng: -rng.lognormal(0, 0.7, 4000),
    "even": lambda rng: rng.uniform(-1, 3, 4000),
}


KINDS = tuple(kind for kind in RANGE_KINDS if kind != "half_quadratic")  # that is for weights


def drawn(name):
    return DRAWS[name](np.random.default_rng(0)).astype(np.float32)


def histogram_of(values):
    builder = HistogramBuilder()
    builder.add(values, float(values.min()), float(values.max()))
    return builder.build()


def coarse(values, bins=96):
    """Few bins, so that every pair of ends can be tried."""
    counts, edges = np.histogram(values, bins)
    return Histogram(edges[0], edges[-1], counts.astype(float), float(values.min()), float(values.max()))


def every_range(values):
    """All pairs of ends on the grid; zero stays inside."""
    lows = {min(float(values.min()), 0.0) * f for f in FRACTIONS}
    highs = {max(float(values.max()), 0.0) * f for f in FRACTIONS}
    return itertools.product(sorted(lows), sorted(highs))


def loss(values, low, high, levels):
    """Mean squared error of the values themselves, zero exact."""
    step = (high - low) / (levels - 1)
    zero = np.round(-low / step)
    codes = np.clip(np.round(values / step) + zero, 0, levels - 1)
    return float(np.mean((values - (codes - zero) * step) ** 2))


# --- what every search keeps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(
    values=arrays.arrays(np.float32, st.integers(1, 200), elements=st.floats(-100, 100, width=32)),
    levels=st.sampled_from([16, 256]),
)
def test_zero_is_inside_and_nothing_that_was_not_seen(kind, values, levels):
    low, high = search(kind, histogram_of(values), levels)
    assert min(float(values.min()), 0.0) <= low <= 0 <= high <= max(float(values.max()), 0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [2.5, -2.5])
def test_a_tensor_of_one_value_keeps_it(kind, value):
    low, high = search(kind, histogram_of(np.full(50, value, np.float32)), 256)
    assert low - 0.01 <= value <= high + 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_zeros_has_no_range(kind):
    assert search(kind, histogram_of(np.zeros(50, np.float32)), 256) == (0, 0)


# --- each by its own measure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWS)
def test_minmax_is_the_extremes_and_zero(name):
    values = drawn(name)
    assert minmax(histogram_of(values)) == (min(0.0, float(values.min())), max(0.0, float(values.max())))


@pytest.mark.parametrize("inside", [90.01, 99.03, 99.87])
@pytest.mark.parametrize("name", DRAWS)
def test_percentile_is_the_narrowest_range_of_bins_that_leaves_out_no_more(name, inside):
    histogram = coarse(drawn(name), 500)
    low, high = percentile(histogram, inside)
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    tail = (100 - inside) / 200 * histogram.counts.sum()
    below = [histogram.counts[: np.searchsorted(edges, edge)].sum() for edge in edges]
    above = [histogram.counts[np.searchsorted(edges, edge) :].sum() for edge in edges]
    lowest = max(edge for edge, count in zip(edges, below, strict=True) if count <= tail)
    highest = min(edge for edge, count in zip(edges, above, strict=True) if count <= tail)
    width = edges[1] - edges[0]
    assert low == pytest.approx(min(lowest, 0.0), abs=1e-9)
    assert max(min(highest, histogram.maximum), 0.0) - 1e-9 <= high <= max(highest + width, 0.0) + 1e-9


@pytest.mark.parametrize("levels", [16, 256])
@pytest.mark.parametrize("name", DRAWS)
def test_mse_loses_no_more_of_the_values_than_the_best_of_all_ranges(name, levels):
    values = drawn(name)
    best = min(loss(values, low, high, levels) for low, high in every_range(values))
    found = mse(histogram_of(values), levels)
    assert loss(values, *found, levels) <= 1.05 * best
    assert loss(values, *found, levels) <= 1.02 * loss(values, *minmax(histogram_of(values)), levels)


def test_mse_cuts_an_outlier_off_where_few_levels_are_left():
    low, high = mse(histogram_of(drawn("an outlier")), 16)
    assert low == 0
    assert high < 20


@pytest.mark.parametrize("levels", [4, 16, 256])
@pytest.mark.parametrize("name", DRAWS)
def test_squared_error_of_a_histogram_is_that_of_its_values(name, levels):
    values = drawn(name)
    for low, high in ((values.min(), values.max()), (0.5 * values.min(), 0.7 * values.max())):
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        known = squared_error(histogram_of(values), low, high, levels)
        assert known == pytest.approx(loss(values, low, high, levels), rel=0.1)


def divergence(histogram, low, high, levels):
    """Kullback-Leibler divergence, bin by bin in Python, of what rounding to codes does to a distribution."""
    step = (high - low) / (levels - 1)
    width = (histogram.high - histogram.low) / len(histogram.counts)
    bins = [
        (histogram.low + (i + 0.5) * width, count) for i, count in enumerate(histogram.counts) if count > 0
    ]
    groups = {}
    for center, count in bins:
        code = int(min(max(np.round((center - low) / step), 0), levels - 1))
        inside = low - step / 2 <= center <= high + step / 2
        mass, members = groups.get(code, (0.0, []))
        groups[code] = (mass + count, [*members, center] if inside else members)
    after = {center: mass / len(members) for mass, members in groups.values() for center in members}
    total, kept = sum(count for _, count in bins), sum(after.values())
    return sum(
        count / total * np.log(count / total / (after[center] / kept if center in after else 1e-9))
        for center, count in bins
    )


@pytest.mark.parametrize("levels", [8, 16])
@pytest.mark.parametrize("name", DRAWS)
def test_entropy_diverges_no_more_than_the_best_of_all_ranges(name, levels):
    histogram = coarse(drawn(name))
    grid = list(every_range(np.array([histogram.minimum, histogram.maximum])))
    best = min(divergence(histogram, low, high, levels) for low, high in grid[:: max(1, len(grid) // 400)])
    found = divergence(histogram, *entropy(histogram, levels), levels)
    assert found <= 1.25 * best + 1e-6
    assert found <= divergence(histogram, *minmax(histogram), levels) + 1e-9


def test_a_kind_for_weights_alone():
    with pytest.raises(InputError, match="'half_quadratic' is for weights"):
        search("half_quadratic", histogram_of(np.ones(50, np.float32)), 256)


# --- of weights, channel by channel -----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1000, 30_000])
def test_percentiles_of_channels_are_those_of_numpy(length):
    draw = np.random.default_rng(0)
    weight = (draw.standard_t(3, (6, length)) * np.logspace(-2, 2, 6)[:, None]).astype(np.float32)
    scheme = Scheme("uint8", "channel", symmetric=False, range="percentile")
    found = round_weight(torch.from_numpy(weight), scheme, 0, "w")
    low, high = np.percentile(weight.astype(float), [0.005, 99.995], axis=1)
    np.testing.assert_allclose(found.scale, (high - low) / 255, rtol=1e-4)
    whole = round_weight(torch.from_numpy(weight), replace(scheme, range="minmax"), 0, "w")
    assert (found.scale < whole.scale).all()


@pytest.mark.parametrize("kind", ["percentile", "entropy"])
@pytest.mark.parametrize("qtype", ["codebook4", "ternary", "binary"])
def test_ranges_of_evenly_spaced_codes_alone(qtype, kind):
    scheme = Scheme(qtype, range=kind)
    with pytest.raises(
        InputError, match=f"'fc' gets {qtype} weights by range '{kind}', .*write range = 'minmax' or 'mse'"
    ):
        assign(Recipe("mine", (Rule("*", scheme),)), info(layer("fc")))
    with pytest.raises(InputError, match=f"'{kind}' is of int and uint rows"):
        round_weight(torch.ones(4, 4), scheme, 0, "w")
