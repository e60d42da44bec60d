"""The Report in a terminal."""

from __future__ import annotations

import pytest

from fewbits.report import terminal
from tests.report import factory


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("make", [factory.full, factory.unmet, factory.smallest, factory.largest])
def test_one_line_per_candidate_within_the_width(make, width):
    report = make()
    lines = terminal.text(report, width=width).splitlines()
    assert max(map(len, lines)) <= width
    blank = lines.index("")
    assert len(lines[:blank]) == 2 + len(report.candidates)


def test_it_says_what_counts():
    shown = terminal.text(factory.full(), page="out/report.html", width=120)
    first = shown.splitlines()[2]
    for part in (
        "w8a8-mse OV",
        "412 ms",
        "301 MB",
        "23.4 MB",
        "25.8 %",
        "3.58 ms",
        "3.32×",
        "99.10 %",
        "0.30 pp",
    ):
        assert part in first
    assert "✔ chosen" in first
    assert "✗ drop 3.2 %" in shown
    assert "! Exception from" in shown
    assert "Ship w8a8-mse on OpenVINO" in shown
    assert "Report: out/report.html" in shown


def test_the_engine_is_there_where_there_is_room():
    assert "openvino int8" in terminal.text(factory.full(), width=140).splitlines()[2]
    narrow = terminal.text(factory.full(), width=100)
    assert "25.8 %" in narrow
    assert "301 MB" not in narrow


@pytest.mark.parametrize("width", [60, 120])
def test_throughput_has_a_table_of_its_own(width):
    lines = terminal.text(factory.batched(), width=width).splitlines()
    at = next(number for number, line in enumerate(lines) if "samples per second" in line)
    assert lines[at].split() == ["samples", "per", "second", "batch", "1", "batch", "8", "batch", "32"]
    assert lines[at + 2].split() == ["w8a8-mse", "OV", "279", "521", "790"]
    assert lines[at + 2 + 11].split() == ["w4_g32", "ORT", "45.5", "84.8", "\N{EM DASH}"]
    assert "samples per second" not in terminal.text(factory.full(), width=width)


def test_where_nothing_meets_the_limits_the_failing_limit_is_named():
    assert "fails: speedup 3.32× is under 4×" in terminal.text(factory.unmet(), width=120)


def test_brackets_in_names_and_messages_are_not_markup():
    one = factory.candidate(
        "w8[red]x[/red]", "openvino", "f32", 10, 1.0, 99.0, failed=("[/bold] is over",), met=False
    )
    report = factory.full(candidates=(one,), chosen=None, saved=None, reference=None, verdict="[b]kept[/b]")
    shown = terminal.text(report, width=140)
    assert "w8[red]x[/red]" in shown
    assert "[/bold] is over" in shown
    assert "[b]kept[/b]" in shown
