"""The order candidates are shown in, the outcome of each in words, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fewbits.report.record import Candidate, Report

Kind = Literal["chosen", "best", "met", "unknown", "failed", "error"]
_ORDER: tuple[Kind, ...] = ("chosen", "best", "met", "unknown", "failed", "error")


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: its kind, a word for it, and the reasons."""

    kind: Kind
    word: str
    reasons: tuple[str, ...] = ()


def outcome(report: Report, candidate: Candidate) -> Outcome:
    """What became of `candidate` in `report`."""
    remarks = (candidate.note,) if candidate.note else ()
    if candidate.name == report.chosen:
        return Outcome("chosen", "chosen", remarks)
    if candidate.error is not None:
        return Outcome("error", "could not run", (candidate.error,))
    if report.chosen is None and candidate.name == report.saved:
        return Outcome("best", "best so far", candidate.failed + remarks)
    if candidate.failed or candidate.met is False:
        return Outcome("failed", "fails", candidate.failed + remarks)
    if candidate.met is None:
        return Outcome("unknown", "not judged", remarks)
    return Outcome("met", "tie" if candidate.tied else "meets", remarks)


def ranked(report: Report) -> list[Candidate]:
    """The chosen one, then what meets the limits, what fails them, what could not run; each by latency."""

    def key(candidate: Candidate) -> tuple[int, float, float, str]:
        p50 = candidate.latency_ms.p50
        return (
            _ORDER.index(outcome(report, candidate).kind),
            math.inf if p50 is None else p50,
            math.inf if candidate.size_bytes is None else candidate.size_bytes,
            candidate.name,
        )

    return sorted(report.candidates, key=key)


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names on the Pareto front of (cost, quality): less cost is better, more quality is better.

    Sorted by cost. Of equal points each is kept; a point that another beats in one of the two and at
    least matches in the other is not on the front.
    """
    kept: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not kept or points[name][1] > points[kept[-1]][1] or points[name] == points[kept[-1]]:
            kept.append(name)
    return kept
