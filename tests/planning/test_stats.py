"""Histograms whose range grows: held against the sorted values, in fixed memory."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fewbits.errors import InputError
from fewbits.methods.range_search import percentile
from fewbits.planning.stats import HistogramBuilder, Stats

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ORDINARY = st.floats(-100, 100, width=32)
BATCHES = st.lists(arrays.arrays(np.float32, st.integers(1, 50), elements=FINITE | ORDINARY), min_size=1)


def built(batches):
    builder = HistogramBuilder()
    for batch in batches:
        builder.add(batch, float(batch.min()), float(batch.max()))
    return builder.build()


def width(histogram):
    return (histogram.high - histogram.low) / len(histogram.counts)


@settings(deadline=None)
@given(BATCHES)
def test_every_value_is_counted_where_it_is(batches):
    """The k-th value in order lies in the bin in which the k-th count is, or at the border of it."""
    values = np.sort(np.concatenate(batches).astype(np.float64))
    histogram = built(batches)
    assert histogram.counts.sum() == len(values)
    assert (histogram.minimum, histogram.maximum) == (values[0], values[-1])
    bins = np.repeat(np.arange(len(histogram.counts)), histogram.counts.astype(int))
    lower = histogram.low + bins * width(histogram)
    slack = 1.01 * width(histogram)  # adding half the range rounds values near zero onto a border
    assert (values >= lower - slack).all()
    assert (values <= lower + width(histogram) + slack).all()


@settings(deadline=None)
@given(BATCHES)
def test_the_range_covers_the_values_closely(batches):
    values = np.concatenate(batches).astype(np.float64)
    histogram = built(batches)
    slack = 1.01 * width(histogram)
    assert histogram.low - slack <= values.min() <= values.max() <= histogram.high + slack
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0
    reach = np.abs(values).max()
    assert width(histogram) <= max(4 * reach / HistogramBuilder.BINS, 2.0**-125 / HistogramBuilder.BINS)


@settings(deadline=None)
@given(BATCHES, st.randoms())
def test_the_order_of_batches_changes_nothing_but_borders(batches, random):
    shuffled = list(batches)
    random.shuffle(shuffled)
    one, other = built(batches), built(shuffled)
    assert built(batches).counts.tobytes() == one.counts.tobytes()
    assert (one.minimum, one.maximum) == (other.minimum, other.maximum)
    assert width(one) == width(other)
    start = min(one.low, other.low)
    size = round((max(one.high, other.high) - start) / width(one))
    counts = np.zeros((2, size + 2))
    for row, histogram in enumerate((one, other)):
        first = round((histogram.low - start) / width(one))
        counts[row, first : first + len(histogram.counts)] = histogram.counts
    sums = np.cumsum(counts, axis=1)
    # What one order counts up to a bin, the other counts up to the next.
    assert (sums[0, :-1] <= sums[1, 1:]).all()
    assert (sums[1, :-1] <= sums[0, 1:]).all()


def test_growing_loses_nothing_of_values_inside_their_bins():
    """As the docstring promises: the same counts as if the final range had been known."""
    rng = np.random.default_rng(0)
    bin_width = 2 * 1024 / HistogramBuilder.BINS
    reaches = (1, 4, 7, 64, 100, 1024)
    batches = [
        ((rng.integers(-reach, reach, 4000) + 0.5) * bin_width).astype(np.float32)
        for reach in [round(reach / bin_width) for reach in reaches]
    ]
    grown = built(batches)
    known = built([batches[-1], *batches[:-1]])
    assert np.array_equal(grown.counts, known.counts)
    assert (grown.low, grown.high) == (known.low, known.high)


@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform", "lognormal"])
def test_percentiles_are_numpys(draw):
    values = getattr(np.random.default_rng(0), draw)(size=200_000).astype(np.float32)
    histogram = built(np.split(values, 40))
    low, high = percentile(histogram, inside=99.0)
    assert low == pytest.approx(min(np.percentile(values, 0.5), 0), abs=2 * width(histogram))
    assert high == pytest.approx(np.percentile(values, 99.5), abs=2 * width(histogram))


def test_memory_is_fixed():
    builder = HistogramBuilder()
    sizes = set()
    for exponent in range(-40, 40):
        values = np.float32(2.0**exponent) * np.random.default_rng(0).standard_normal(1000).astype(np.float32)
        builder.add(values, float(values.min()), float(values.max()))
        sizes.add(builder.counts.nbytes + len(vars(builder)))
    assert len(sizes) == 1
    assert builder.build().counts.sum() == 80_000


def test_extremes_may_lie_outside_of_what_is_counted():
    builder = HistogramBuilder()
    builder.add(np.ones(3, np.float32), -5.0, 7.0)
    histogram = builder.build()
    assert (histogram.minimum, histogram.maximum) == (-5.0, 7.0)
    assert histogram.counts.sum() == 3


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, 1.0, -3.0])
def test_one_value_only(value):
    histogram = built([np.full(10, value, np.float32)])
    assert histogram.counts.sum() == 10
    assert histogram.low <= np.float32(value) <= histogram.high


def test_the_middles_of_bins():
    histogram = built([np.array([-1.0, 1.0], np.float32)])
    assert np.allclose(np.diff(histogram.centers), width(histogram))
    assert histogram.centers[0] - width(histogram) / 2 == histogram.low
    assert histogram.centers[-1] + width(histogram) / 2 == histogram.high


def test_a_tensor_that_was_not_observed_is_named():
    with pytest.raises(InputError, match="'hidden'"):
        Stats({}, 0)["hidden"]
