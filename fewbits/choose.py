"""Limits, a preference and measured candidates in; the choice and its reasons out. Nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fewbits.errors import InputError

Prefer = Literal["speed", "size", "quality"]
PREFERENCES: tuple[Prefer, ...] = ("speed", "size", "quality")
TIE = 1.03  # what is within 3 % is a tie
UNITS = {"": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "B": 1}


@dataclass(frozen=True)
class Limits:
    """What a candidate must meet, resolved to plain numbers; None where nothing was asked.

    Attributes:
        max_drop: largest loss of score, in the metric's unit.
        max_bytes: largest file.
        min_speedup: smallest speedup against the original in float32 in its fastest engine.
    """

    max_drop: float | None = None
    max_bytes: int | None = None
    min_speedup: float | None = None


@dataclass(frozen=True)
class Measured:
    """What the choice knows of a candidate; None for what could not be measured.

    ``drop`` is the loss of score in the metric's unit, positive is worse; ``speedup`` as in :class:`Limits`.
    What is ``shown_only`` is never chosen; ``unscored`` is why there is no drop; ``others`` are limits that other
    signatures of the file fail, in words.
    """

    name: str
    size_bytes: int
    latency_ms: float | None
    speedup: float | None
    drop: float | None
    error: str | None = None
    shown_only: bool = False
    unscored: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The outcome.

    Attributes:
        chosen: the candidate that meets every limit and is preferred; None where none does.
        saved: the chosen one, or the best so far; None where nothing could be measured.
        failed: for every candidate by name, the limits it fails, in words with the distance.
    """

    chosen: str | None
    saved: str | None
    failed: dict[str, tuple[str, ...]]


def choose(candidates: Sequence[Measured], limits: Limits, prefer: Prefer, unit: str) -> Choice:
    """Choose among measured candidates. One without a score is never chosen.

    Preferring speed takes the fastest, and among those tied with it (3 %) the smallest file, where sizes within 3 %
    are as good as each other; preferring size
    takes the smallest, and the faster among those tied; preferring quality takes the least drop, then the smallest.
    """
    failed = {one.name: _failures(one, limits, unit) for one in candidates}
    able = [
        one
        for one in candidates
        if not one.shown_only and one.error is None and one.drop is not None and one.latency_ms is not None
    ]
    meeting = [one for one in able if not failed[one.name]]
    if meeting:
        best = _preferred(meeting, prefer).name
        return Choice(best, best, failed)
    if not able:
        return Choice(None, None, failed)
    return Choice(None, min(able, key=lambda one: _distance(one, limits)).name, failed)


def _preferred(candidates: Sequence[Measured], prefer: Prefer) -> Measured:
    def latency(one: Measured) -> float:
        return one.latency_ms or 0.0

    def drop(one: Measured) -> float:
        return one.drop or 0.0

    if prefer == "speed":
        fastest = min(map(latency, candidates))
        tied = [one for one in candidates if latency(one) <= fastest * TIE]
        smallest = min(one.size_bytes for one in tied)
        small = [one for one in tied if one.size_bytes <= smallest * TIE]
        return min(small, key=lambda one: (latency(one), drop(one), one.size_bytes))
    if prefer == "size":
        smallest = min(one.size_bytes for one in candidates)
        tied = [one for one in candidates if one.size_bytes <= smallest * TIE]
        return min(tied, key=lambda one: (latency(one), one.size_bytes))
    return min(candidates, key=lambda one: (drop(one), one.size_bytes, latency(one)))


def _failures(one: Measured, limits: Limits, unit: str) -> tuple[str, ...]:
    if one.error is not None:
        return ()
    found = []
    if one.drop is None:
        why = "" if one.unscored is None else f": {one.unscored}"
        found.append(f"its score could not be computed{why}")
    elif limits.max_drop is not None and one.drop > limits.max_drop:
        found.append(f"drop {one.drop:.3g}{unit} is over {limits.max_drop:.3g}{unit}")
    if limits.max_bytes is not None and one.size_bytes > limits.max_bytes:
        found.append(f"size {one.size_bytes / 1e6:.2f} MB is over {limits.max_bytes / 1e6:.2f} MB")
    if limits.min_speedup is not None and (one.speedup is None or one.speedup < limits.min_speedup):
        got = "unknown" if one.speedup is None else f"{one.speedup:.2f}x"
        found.append(f"speedup {got} is under {limits.min_speedup:g}x")
    return (*found, *one.others)


def _distance(one: Measured, limits: Limits) -> tuple[int, float, float]:
    """Other signatures that fail; by how much the limits are missed, each relative to itself; and then the drop."""
    missed = 0.0
    drop = one.drop if one.drop is not None else float("inf")
    if limits.max_drop is not None:
        missed += max(0.0, drop - limits.max_drop) / max(limits.max_drop, 1e-9)
    if limits.max_bytes is not None:
        missed += max(0.0, one.size_bytes / max(limits.max_bytes, 1) - 1)
    if limits.min_speedup is not None:
        missed += max(0.0, limits.min_speedup / max(one.speedup or 1e-9, 1e-9) - 1)
    return len(one.others), missed, drop


def parse_drop(text: str | float, loss: Callable[[float], float]) -> float:
    """``1%`` of the original's score, or a number in the metric's own unit.

    Args:
        text: as the user wrote it.
        loss: what losing a share of the original's score comes to, in the metric's unit.

    Raises:
        InputError: neither of these, or negative.
    """
    number, relative = _number("max_drop", text, "1% of the original's score, or 0.5 in the metric's unit")
    return loss(number / 100) if relative else number


def parse_size(text: str | float | None, original: int) -> int | None:
    """``25%`` of the original file, or ``20MB``, or bytes. Raises InputError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMG]?i?B)\s*", str(text), re.IGNORECASE)
    if match and match[1].replace(".", "", 1).isdigit():
        return int(float(match[1]) * UNITS[match[2].upper()])
    number, relative = _number("max_size", text, "25% of the original file, 20MB, or a number of bytes")
    return int(original * number / 100) if relative else int(number)


def _number(name: str, text: str | float, allowed: str) -> tuple[float, bool]:
    written = str(text).strip()
    try:
        number = float(written.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InputError(f"{name} is {text!r}; allowed: {allowed}")
    return number, written.endswith("%")
