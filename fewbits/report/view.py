"""What the page says at its top, in words: the status, the three big numbers, and what was asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fewbits.report import words
from fewbits.report.plots import level
from fewbits.report.ranking import outcome, ranked
from fewbits.report.record import Candidate, Report, Throughput


@dataclass(frozen=True)
class Status:
    """The verdict in a word or two; `kind` picks its colour."""

    kind: str
    text: str


@dataclass(frozen=True)
class Bar:
    """A labelled bar, `share` of its full width; `tick` marks a limit."""

    label: str
    text: str
    share: float
    style: str
    tick: float | None = None


@dataclass(frozen=True)
class Hero:
    """One of the three big numbers."""

    title: str
    big: str
    small: str
    now: str
    more: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Rate:
    """Samples per second, and what share of the column's largest it is."""

    samples_per_s: float | None
    share: float
    error: str | None


@dataclass(frozen=True)
class Rates:
    """A candidate's row of the table of throughputs."""

    name: str
    kind: str
    cells: tuple[Rate, ...]


@dataclass(frozen=True)
class Segment:
    """A dtype's part of a file."""

    dtype: str
    text: str
    share: float
    level: str


def status(report: Report) -> Status:
    """Whether there is a choice, and whether it is the original itself."""
    shown = report.shown
    if shown is None:
        return Status("failed", "Nothing was chosen")
    if report.chosen is None:
        return Status("best", "No candidate meets the limits")
    if shown.original:
        return Status("float", "Keep the original file")
    return Status("chosen", "Meets every limit" if asked(report) else "Chosen")


def asked(report: Report) -> tuple[tuple[str, str], ...]:
    """The limits as the user wrote them: (what, how much)."""
    limits = report.limits
    least = None if limits.min_speedup is None else f"at least {limits.min_speedup:g}{words.TIMES}"
    pairs = (
        ("drop", limits.max_drop and f"at most {limits.max_drop}"),
        ("size", limits.max_size and f"at most {limits.max_size}"),
        ("speedup", least),
        ("preferred", limits.prefer),
    )
    return tuple((what, how) for what, how in pairs if how)


def heroes(report: Report) -> tuple[Hero, ...]:
    """Size, speed and quality of the shown candidate against the original; none where nothing is shown."""
    shown = report.shown
    return () if shown is None else (_size(report, shown), _speed(report, shown), _quality(report, shown))


def _ratio(value: float | None, more: str, less: str, same: str, band: float) -> tuple[str, str]:
    """A ratio as a number above one with the word for its direction."""
    if value is None or value <= 0:
        return words.NOTHING, ""
    if abs(value - 1) <= band:
        return words.times(value), same
    return (words.times(value), more) if value > 1 else (words.times(1 / value), less)


def _pair(original: float, this: float, limit: float | None, text: Callable[[float], str]) -> tuple[Bar, ...]:
    full = max(original, this, limit or 0.0) or 1.0
    over = limit is not None and this > limit
    label = "this" if limit is None else f"this; mark: at most {text(limit)}"
    return (
        Bar("original", text(original), original / full, ""),
        Bar(
            label,
            text(this),
            this / full,
            "over" if over else "this",
            None if limit is None else limit / full,
        ),
    )


def _size(report: Report, shown: Candidate) -> Hero:
    was, now = report.source.size_bytes, shown.size_bytes
    if not now or not was:
        return Hero("Size", words.NOTHING, "", "not measured", "", ())
    # Sizes are exact: only the very same size is "the same".
    big, small = _ratio(was / now, "smaller", "larger", "same size", 0.0)
    return Hero(
        title="Size",
        big=big,
        small=small,
        now=f"{words.size(now)}, was {words.size(was)}",
        more=". ".join(filter(None, (f"{words.share(now / was)} of the original", shown.folded))),
        bars=_pair(was, now, report.limits.size_limit_bytes, words.size),
    )


def _speed(report: Report, shown: Candidate) -> Hero:
    if shown.speedup is None:
        return Hero("Speed", words.NOTHING, "", "not measured", "", ())
    big, small = _ratio(shown.speedup, "faster", "slower", "as fast", report.tie_band)
    reference = report.reference_candidate
    now = shown.latency_ms.p50
    was = None if reference is None else reference.latency_ms.p50
    remarks = []
    if reference is not None:
        remarks.append(f"against {reference.name}")
    if shown.speedup_low is not None and shown.speedup_high is not None:
        remarks.append(f"between {words.times(shown.speedup_low)} and {words.times(shown.speedup_high)}")
    if shown.speedup_vs_bf16 is not None:
        remarks.append(f"{words.times(shown.speedup_vs_bf16)} against the original in bf16")
    if shown.speedup_vs_source is not None:
        remarks.append(
            f"{words.times(shown.speedup_vs_source)} against {report.source.format or 'the source'}"
        )
    return Hero(
        title="Speed",
        big=big,
        small=small,
        now=words.milliseconds(now) + (f", was {words.milliseconds(was)}" if was is not None else ""),
        more="; ".join(remarks),
        bars=()
        if was is None or now is None
        else _pair(was, now, report.limits.latency_limit_ms, words.milliseconds),
    )


def _quality(report: Report, shown: Candidate) -> Hero:
    metric, limits, agreement = report.metric, report.limits, shown.agreement
    remarks = []
    if agreement.top1 is not None:
        remarks.append(f"top-1 agreement {words.share(agreement.top1)}")
    if agreement.cosine_min is not None:
        remarks.append(f"minimum cosine {words.number(agreement.cosine_min, 4)}")
    if agreement.sqnr_db is not None:
        remarks.append(f"SQNR {words.decibel(agreement.sqnr_db)}")
    more = "; ".join(remarks)
    if shown.metric is None or metric.original is None:
        return Hero("Quality", words.NOTHING, "", "no score could be computed", more, ())
    change = shown.metric - metric.original
    bars: tuple[Bar, ...] = ()
    if limits.metric_limit is not None and (allowed := abs(metric.original - limits.metric_limit)) > 0:
        drop = max(0.0, -change if metric.higher_is_better else change)
        full = max(allowed, drop)
        bars = (
            Bar(
                "drop used of the drop allowed",
                words.share(drop / allowed, 0),
                drop / full,
                "over" if drop > allowed else "this",
                allowed / full if drop > allowed else None,
            ),
        )
    return Hero(
        title=f"Quality: {metric.name}{'' if metric.higher_is_better else ', lower is better'}",
        big=words.change(change, metric),
        small="points" if metric.unit.strip() == "%" else metric.unit.strip(),
        now=f"{words.score(shown.metric, metric)}, was {words.score(metric.original, metric)}",
        more=more,
        bars=bars,
    )


def throughput(report: Report) -> tuple[Rates, ...]:
    """Samples per second of every candidate measured so, in the order of the table; none where nobody asked."""
    full = {
        size: max(
            part.samples_per_s or 0.0
            for one in report.candidates
            for part in one.throughput
            if part.batch == size
        )
        for size in report.batches
    }
    rows = []
    for one in ranked(report):
        found = {part.batch: part for part in one.throughput}
        if found:
            cells = tuple(
                Rate(part.samples_per_s, (part.samples_per_s or 0.0) / (full[size] or 1.0), part.error)
                for size, part in ((size, found.get(size, Throughput(batch=size))) for size in report.batches)
            )
            rows.append(Rates(one.name, outcome(report, one).kind, cells))
    return tuple(rows)


def segments(bytes_by_dtype: dict[str, int], full: int) -> tuple[Segment, ...]:
    """A file's dtypes, widest part first, as shares of `full` bytes."""
    return tuple(
        Segment(dtype, words.size(part), part / full if full else 0.0, dtype_level(dtype))
        for dtype, part in sorted(bytes_by_dtype.items(), key=lambda item: (-item[1], item[0]))
    )


def dtype_level(dtype: str) -> str:
    """The colour class of a dtype's width: the first number in its name."""
    width = re.search(r"\d+", dtype)
    return level(float(width.group()) if width else None)
