"""Numbers in words."""

from __future__ import annotations

import pytest

from fewbits.report import words
from fewbits.report.record import Metric

PERCENT = Metric(name="top-1", unit="%", original=88.29)
PERPLEXITY = Metric(name="perplexity", higher_is_better=False, original=12.345)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0, "0 B"),
        (532, "532 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (9_996, "10.0 kB"),
        (999_499, "999 kB"),
        (999_999, "1.00 MB"),
        (22_900_000, "22.9 MB"),
        (90_712_345, "90.7 MB"),
        (1_270_000_000, "1.27 GB"),
    ],
)
def test_size(value, text):
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(-0.001, 2, "0.00"), (-0.3, 2, "−0.30"), (1234.5, 1, "1,234.5"), (None, 1, "—")],
)
def test_number(value, decimals, text):
    assert words.number(value, decimals) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.3, "+0.30"), (-0.3, "−0.30"), (-0.001, "±0.00"), (0, "±0.00")]
)
def test_change(value, text):
    assert words.change(value, PERCENT) == text


@pytest.mark.parametrize(("value", "text"), [(0.84, "0.84 s"), (12.34, "12.3 s"), (125.2, "2 min 05 s")])
def test_seconds(value, text):
    assert words.seconds(value) == text


def test_ratios_and_shares():
    assert words.times(3.324) == "3.32×"
    assert words.times(12.34) == "12.3×"
    assert words.share(0.2524) == "25.2 %"
    assert words.decibel(-3.21) == "−3.2 dB"


def test_a_drop_of_percentages_is_in_points():
    assert words.score(88.2, PERCENT) == "88.20 %"
    assert words.drop(0.09, PERCENT) == "0.09 pp"
    assert words.score(12.5, PERPLEXITY) == "12.50"
    assert words.drop(-0.125, PERPLEXITY) == "−0.12"


def test_decimals_give_the_smallest_three_digits():
    assert words.decimals_for([0.231, 13.6, None]) == 3
    assert words.decimals_for([3.31, 22.0]) == 2
    assert words.decimals_for([150.0]) == 0
    assert words.decimals_for([None, 0.0]) == 2
    assert words.milliseconds(0.2314) == "0.231 ms"


@pytest.mark.parametrize("limit", [5, 6, 40])
def test_shortened_keeps_both_ends(limit):
    name = "encoder.layer.11.attention.output.dense/MatMul"
    short = words.shortened(name, limit)
    assert len(short) == limit
    assert name.startswith(short.split("…")[0])
    assert name.endswith(short.split("…")[1])
    assert words.shortened("conv1", limit) == "conv1"
