"""Numbers in words: the one place where a report's values become text. None is an em dash."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fewbits.report.record import Metric, Signature

NOTHING = "\N{EM DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
_MINUS = "\N{MINUS SIGN}"


def number(value: float | None, decimals: int) -> str:
    """`value` with a fixed number of decimals and a true minus; no negative zero."""
    if value is None:
        return NOTHING
    text = f"{abs(value):,.{decimals}f}"
    return _MINUS + text if value < 0 and float(text.replace(",", "")) != 0 else text


def change(value: float, metric: Metric) -> str:
    """`points` with a plus on positive values and ± on what rounds to zero."""
    text = points(value, metric)
    if text.startswith(_MINUS):
        return text
    return ("±" if float(text.replace(",", "")) == 0 else "+") + text


def count(value: float | None) -> str:
    """An integer with thousands separated."""
    return NOTHING if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in B, kB, MB or GB (thousands), three significant digits."""
    if value is None:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # 999 999 bytes are 1.00 MB, not 1000 kB.
        if value >= 0.9995 * scale:
            scaled = value / scale
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {unit}"
    return f"{value:.0f} B"


def share(value: float | None, decimals: int = 1) -> str:
    """A share of one in percent."""
    return NOTHING if value is None else f"{number(100 * value, decimals)} %"


def times(value: float | None) -> str:
    """A ratio: "3.42×"."""
    if value is None:
        return NOTHING
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{TIMES}"


def rate(value: float | None) -> str:
    """Samples per second, three significant digits."""
    return NOTHING if value is None else number(value, decimals_for([value]))


def decibel(value: float | None) -> str:
    """A signal-to-noise ratio, one decimal."""
    return NOTHING if value is None else f"{number(value, 1)} dB"


def milliseconds(value: float | None, decimals: int | None = None) -> str:
    """A latency; three significant digits where no number of decimals is given."""
    if value is None:
        return NOTHING
    return f"{number(value, decimals_for([value]) if decimals is None else decimals)} ms"


def seconds(value: float | None) -> str:
    """A duration: "0.84 s", "12.3 s", "2 min 05 s"."""
    if value is None:
        return NOTHING
    if value >= 99.5:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{value:.{2 if value < 9.995 else 1}f} s"


def decimals_for(values: Iterable[float | None]) -> int:
    """Decimals that give the smallest nonzero value of a column three significant digits, at most 4."""
    smallest = min((abs(v) for v in values if v), default=1.0)
    return min(4, max(0, 2 - math.floor(math.log10(smallest))))


def points(value: float, metric: Metric) -> str:
    """A score or a difference of scores, without its unit: two decimals of percent and dB, else four digits.

    They are digits of the original's score, so that a column lines up; of the value itself where that is zero.
    """
    if metric.unit.strip() in ("%", "dB"):
        return number(value, 2)
    size = abs(metric.original or value)
    decimals = max(0, 3 - math.floor(math.log10(size))) if size else 0
    return number(value, decimals) if decimals <= 6 else f"{value:.3g}".replace("-", _MINUS)


def unit(metric: Metric) -> str:
    """The metric's unit as written after a number, with its space."""
    return f" {metric.unit.strip()}" if metric.unit.strip() else ""


def score(value: float | None, metric: Metric) -> str:
    """A score with its unit."""
    return NOTHING if value is None else points(value, metric) + unit(metric)


def drop(value: float | None, metric: Metric) -> str:
    """A difference of scores; of percentages it is in percentage points, so that no one reads a ratio."""
    if value is None:
        return NOTHING
    return points(value, metric) + (" pp" if unit(metric) == " %" else unit(metric))


def signature(found: Signature) -> str:
    """One signature in a line: what it lost, and how fast it is."""
    name = f"signature {found.name!r}"
    if found.metric is None:
        return f"{name}: as it came, since no data was given for it"
    if not found.rounded:
        return f"{name}: as it came"
    return (
        f"{name}: {found.metric.name} {score(found.score, found.metric)}, drop {drop(found.drop, found.metric)}, "
        f"{milliseconds(found.latency_ms.p50)}, {times(found.speedup)} against its original in float32"
    )


def shortened(text: str, limit: int) -> str:
    """`text` with its middle cut out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (limit - 1 - head) :]}"
