"""The order of candidates, outcomes in words, and the Pareto front."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fewbits.report.ranking import front, outcome, ranked
from tests.report import factory


def kinds(report):
    return [outcome(report, one).kind for one in ranked(report)]


def test_the_chosen_first_then_met_failed_and_errors_each_by_latency():
    report = factory.full()
    assert kinds(report) == ["chosen", "met", *["failed"] * 10, "error"]
    failed = [one.latency_ms.p50 for one in ranked(report)[2:-1]]
    assert failed == sorted(failed)
    assert sorted(one.name for one in ranked(report)) == sorted(one.name for one in report.candidates)


def test_best_so_far_says_what_it_fails():
    report = factory.unmet()
    first = outcome(report, ranked(report)[0])
    assert (first.kind, first.word) == ("best", "best so far")
    assert first.reasons == ("speedup 3.32× is under 4×",)


def test_an_error_is_its_own_reason():
    report = factory.full()
    assert outcome(report, report.candidate("w8a8_dynamic OV")).reasons[0].startswith("Exception from src")


def test_a_tie_is_named():
    report = factory.full()
    assert outcome(report, report.candidate("w8 OV bf16")).word == "tie"


@given(st.dictionaries(st.text(max_size=3), st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_front_holds_exactly_what_nothing_dominates(points):
    def dominated(name):
        cost, quality = points[name]
        return any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points.values())

    assert set(front(points)) == {name for name in points if not dominated(name)}
    costs = [points[name][0] for name in front(points)]
    assert costs == sorted(costs)
