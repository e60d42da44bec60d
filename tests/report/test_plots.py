"""The geometry of the pictures."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.report import plots
from fewbits.report.record import Layer, Metric
from tests.report import factory


def inside(plot: plots.Scatter) -> bool:
    return all(0 <= m.x <= plot.width and 0 <= m.y <= plot.height for m in plot.marks)


ENDS = st.sampled_from([(0.0, 400.0), (300.0, 0.0)])


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9), ENDS)
def test_ticks_are_round_distinct_and_on_the_axis(low, span, about, ends):
    axis = plots.Axis(low, low + span, *ends)
    if axis.low + span * 1e-3 == axis.low:
        return  # the span is lost in the rounding of low
    ticks = axis.ticks(about)
    assert 1 <= len(ticks) <= 2 * about + 2
    assert len({t.text for t in ticks}) == len(ticks)
    assert all(min(ends) <= t.at <= max(ends) for t in ticks)


def test_an_axis_maps_ends_and_middle_and_holds_what_is_beyond():
    axis = plots.Axis(0.0, 10.0, 100.0, 0.0)
    assert [axis.at(v) for v in (0, 5, 10, 99, -1)] == [100, 50, 0, 0, 100]
    assert [t.text for t in axis.ticks()] == ["0", "2", "4", "6", "8", "10"]


def test_scatters_show_every_candidate_that_was_measured():
    report = factory.full()
    for plot in (plots.size_scatter(report), plots.latency_scatter(report)):
        assert {m.name for m in plot.marks} == {c.name for c in report.candidates if c.metric is not None}
        assert inside(plot)
        assert sum(m.kind == "chosen" for m in plot.marks) == 1
        assert plot.front.startswith("M")
        assert plot.cost_limit is not None
        assert plot.quality_limit is not None


def test_a_collapsed_candidate_does_not_flatten_the_others():
    plot = plots.latency_scatter(factory.full())
    at = {m.name: m for m in plot.marks}
    assert at["w4_g32 OV"].pinned
    assert plot.y.start < at["w4_g32 OV"].y < plot.floor
    # 99.4 and 98.85 are still told apart by more than a mark's height.
    assert at["w8 OV bf16"].y - at["original OV f32"].y > 12


def test_up_is_better_also_for_a_metric_that_is_better_when_lower():
    better, worse = (
        factory.candidate(name, "openvino", "f32", 10**6, 1.0, score)
        for name, score in (("good", 12.0), ("bad", 14.0))
    )
    metric = Metric(name="perplexity", higher_is_better=False, original=12.0)
    report = factory.full(
        candidates=(better, worse),
        chosen="good",
        saved=None,
        reference=None,
        metric=metric,
        limits={"metric_limit": 13.0},
    )
    plot = plots.latency_scatter(report)
    at = {m.name: m.y for m in plot.marks}
    assert at["good"] < plot.quality_limit < at["bad"]
    values = [float(t.text) for t in plot.y_ticks]
    assert values == sorted(values, reverse=True)
    assert all(11 < v < 16 for v in values)


def test_labels_do_not_cover_each_other_or_marks():
    for report in (factory.full(), factory.largest()):
        plot = plots.latency_scatter(report)
        for label in plot.labels:
            if label.anchor == "start":
                assert not any(
                    label.x < m.x < label.x + 5 * len(label.text) and abs(label.y - 4 - m.y) < 4
                    for m in plot.marks
                )
    assert "w8a8-mse OV" in {label.text for label in plots.latency_scatter(factory.full()).labels}


def test_nothing_measured_draws_nothing():
    report = factory.smallest()
    assert plots.size_scatter(report) is None
    assert plots.latency_scatter(report) is None
    assert plots.forest(report) is None
    assert plots.layer_track(report.layers) is None


def test_one_candidate_and_all_equal_candidates_can_be_drawn():
    one = factory.candidate("a", "openvino", "f32", 10**6, 1.0, 99.4)
    two = one.model_copy(update={"name": "b"})
    for some in ((one,), (one, two)):
        report = factory.full(candidates=some, chosen="a", saved=None, reference=None, limits={})
        assert inside(plots.size_scatter(report))
        assert len(plots.forest(report).whiskers) == len(some)


def test_the_front_runs_through_the_candidates_on_it_and_never_falls():
    plot = plots.size_scatter(factory.full())
    heights = [float(v) for v in re.findall(r"V([\d.]+)", plot.front)]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) == 2


def test_speedups_keep_their_order_and_their_intervals():
    report = factory.full()
    made = plots.forest(report)
    by_speed = sorted((c for c in report.candidates if c.speedup), key=lambda c: c.speedup)
    pixels = [made.whiskers[c.name].at for c in by_speed]
    assert pixels == sorted(pixels)
    assert all(0 <= w.low < w.at < w.high <= made.width for w in made.whiskers.values())
    low, high = made.band
    assert low < made.whiskers["w8a8-mse OV"].at < high
    assert low < made.whiskers["w8 OV bf16"].at < high  # a tie lies in the band
    assert not low < made.whiskers["w8a8 OV"].at < high


@pytest.mark.parametrize("number", [1, 2, 42, 400])
def test_layers_fit_and_the_lowest_are_marked(number):
    layers = factory.layers(number)
    made = plots.layer_track(layers)
    assert len(made.bars) == number
    assert made.left <= made.bars[0].x - made.bar_width / 2
    assert made.bars[-1].x + made.bar_width / 2 <= made.right
    assert len(made.x_ticks) <= 22
    marked = {bar.number - 1 for bar in made.bars if bar.lowest}
    expected = sorted(range(number), key=lambda i: layers[i].output_sqnr_db)[:3] if number > 3 else []
    assert marked == set(expected)


def test_layers_without_any_ratio_are_drawn():
    made = plots.layer_track((Layer(name="a", op="Conv", scheme="float32"),))
    assert made.bars[0].output_y is None
    assert made.bars[0].level == "b32"


@pytest.mark.parametrize(
    ("bits", "level"),
    [(1, "b4"), (4, "b4"), (5, "b8"), (8, "b8"), (16, "b16"), (32, "b32"), (None, "b32")],
)
def test_level(bits, level):
    assert plots.level(bits) == level


def test_the_histogram_points_up_before_and_down_after():
    made = plots.mirror(factory.weights("a", bits=4))
    up, down = ([float(v) for v in re.findall(r"V([\d.]+)", path)] for path in (made.before, made.after))
    assert max(up) == made.middle == min(down)
    assert min(up) > 0
    assert max(down) < made.height
