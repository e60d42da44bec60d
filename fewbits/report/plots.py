"""The geometry of the report's pictures, in the units of an SVG's viewBox; templates only draw it.

Own drawing instead of a plotting library: five static pictures take about 100 kB as SVG, follow the
page's light or dark colours by themselves and need no script, where a bundled plotly.js is 4.8 MB a report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fewbits.report import words
from fewbits.report.ranking import Kind, front, outcome, ranked
from fewbits.report.record import Candidate, Histogram, Layer, Report

_CHARACTER, _BOLD_CHARACTER = 6.9, 8.2
"""Width of a label's average character, rather wide than narrow, for keeping labels apart."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def inside(self, room: Box) -> bool:
        """Whether all of it lies in `room`."""
        across = room.left <= self.left and self.right <= room.right
        return across and room.top <= self.top and self.bottom <= room.bottom


@dataclass(frozen=True)
class Tick:
    """A position along an axis and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Maps values in [low, high] to pixels in [start, end]; values beyond are held at the ends."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of `value`."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, about: int = 5) -> tuple[Tick, ...]:
        """Round values, roughly `about` of them, with just the decimals they need."""
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw * 0.999)
        decimals = next(d for d in range(12) if math.isclose(round(step, d), step, rel_tol=1e-6))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(
            Tick(self.at(i * step), words.number(i * step, decimals)) for i in range(first, last + 1)
        )


@dataclass(frozen=True)
class Mark:
    """One candidate in a scatter. `pinned`: its quality is far below; it sits in the strip at the bottom."""

    name: str
    x: float
    y: float
    engine: int
    kind: Kind
    original: bool
    pinned: bool
    tip: str


@dataclass(frozen=True)
class Label:
    """Text beside a mark; `anchor` is SVG's text-anchor."""

    x: float
    y: float
    text: str
    anchor: str
    kind: Kind


@dataclass(frozen=True)
class Scatter:
    """Cost along x, quality up, the Pareto front as a path, limits as pixels."""

    title: str
    caption: str
    x_label: str
    y_label: str
    width: float
    height: float
    x: Axis
    y: Axis
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]
    front: str
    cost_limit: float | None
    quality_limit: float | None
    floor: float
    """The pixel of the x axis; above it, up to `y.start`, is the strip of pinned marks, if there are any."""


def engine_names(report: Report) -> tuple[str, ...]:
    """The engines of the candidates; an engine's position picks its colour and shape everywhere."""
    return tuple(sorted({candidate.engine for candidate in report.candidates}))


def size_scatter(report: Report) -> Scatter | None:
    """File size against quality; None where fewer than one candidate has both."""
    largest = max((c.size_bytes or 0 for c in report.candidates), default=0)
    unit, scale = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if largest >= s), ("kB", 1e3))
    limit = report.limits.size_limit_bytes
    return _scatter(
        report,
        title="Size against quality",
        x_label=f"file size, {unit}",
        cost=lambda c: None if c.size_bytes is None else c.size_bytes / scale,
        cost_limit=None if limit is None else limit / scale,
    )


def latency_scatter(report: Report) -> Scatter | None:
    """Median latency against quality; None where fewer than one candidate has both."""
    return _scatter(
        report,
        title="Latency against quality",
        x_label="median latency, ms",
        cost=lambda c: c.latency_ms.p50,
        cost_limit=report.limits.latency_limit_ms,
    )


def _scatter(
    report: Report,
    *,
    title: str,
    x_label: str,
    cost: Callable[[Candidate], float | None],
    cost_limit: float | None,
) -> Scatter | None:
    """One scatter; quality grows upwards also where the metric is better when lower."""
    metric = report.metric
    sign = 1.0 if metric.higher_is_better else -1.0
    known: list[tuple[Candidate, float, float]] = []
    for candidate in ranked(report):
        value = cost(candidate)
        if value is not None and candidate.metric is not None:
            known.append((candidate, value, sign * candidate.metric))
    if not known:
        return None

    width, height = 480.0, 340.0
    limit = None if report.limits.metric_limit is None else sign * report.limits.metric_limit
    low, high = _window([q for _, _, q in known], limit)
    top_cost = max([c for _, c, _ in known] + ([cost_limit] if cost_limit is not None else []))
    x = Axis(0.0, 1.06 * top_cost or 1.0, 62.0, width - 12.0)
    floor = height - 46.0
    y = Axis(low, high, floor - (26.0 if any(q < low for _, _, q in known) else 0.0), 14.0)

    engines = engine_names(report)
    marks = tuple(
        Mark(
            name=candidate.name,
            x=x.at(value),
            y=y.at(quality) if quality >= low else floor - 12.0,
            engine=engines.index(candidate.engine),
            kind=outcome(report, candidate).kind,
            original=candidate.original,
            pinned=quality < low,
            tip=_tip(report, candidate),
        )
        for candidate, value, quality in known
    )
    points = {candidate.name: (value, quality) for candidate, value, quality in known}
    names = [name for name in front(points) if points[name][1] >= low]
    stairs = [(x.at(points[name][0]), y.at(points[name][1])) for name in names]
    return Scatter(
        title=title,
        caption=f"{title}: {len(known)} candidates, {len(names)} on the Pareto front.",
        x_label=x_label,
        y_label=f"{words.shortened(metric.name, 34)}{',' if words.unit(metric) else ''}{words.unit(metric)}",
        width=width,
        height=height,
        x=x,
        y=y,
        x_ticks=x.ticks(),
        y_ticks=_undo(y, y.ticks(), sign),
        marks=marks,
        labels=_labels(marks, stairs, set(names), report.reference, Box(x.start + 2, 0.0, x.end + 10, floor)),
        front=_staircase(stairs, floor),
        cost_limit=None if cost_limit is None else x.at(cost_limit),
        quality_limit=None if limit is None else y.at(limit),
        floor=floor,
    )


def _window(qualities: Sequence[float], limit: float | None) -> tuple[float, float]:
    """The range of quality to draw: what is near the limit in full, what collapsed is left below."""
    best = max(qualities)
    losses = sorted(best - q for q in qualities)
    reach = 3.0 * max(losses[len(losses) // 2], 0.0 if limit is None else best - limit)
    # With nothing collapsed everything is drawn; a lone near miss is not worth an arrow.
    lost = losses[-1] if reach == 0 or losses[-1] <= 1.5 * reach else reach
    span = max(lost, 0.0 if limit is None else 1.15 * (best - limit), 1e-3 * abs(best), 1e-9)
    return best - 1.08 * span, best + 0.08 * span


def _undo(axis: Axis, ticks: tuple[Tick, ...], sign: float) -> tuple[Tick, ...]:
    """Ticks of a negated metric get back the metric's own sign."""
    if sign > 0:
        return ticks
    minus = "\N{MINUS SIGN}"
    return tuple(Tick(t.at, t.text[1:] if t.text.startswith(minus) else minus + t.text) for t in ticks)


def _staircase(points: Sequence[tuple[float, float]], floor: float) -> str:
    """An SVG path: up from the floor to the cheapest point, then right and up from point to point."""
    if not points:
        return ""
    steps = [f"M{points[0][0]} {floor}V{points[0][1]}"]
    steps += [f"H{px}V{py}" for px, py in points[1:]]
    return "".join(steps)


def _tip(report: Report, candidate: Candidate) -> str:
    metric = report.metric
    what = outcome(report, candidate)
    return "\n".join(
        [
            f"{candidate.name} · {candidate.engine} {candidate.precision or ''}".rstrip(),
            f"{words.size(candidate.size_bytes)} · {words.milliseconds(candidate.latency_ms.p50)}"
            f" · {words.times(candidate.speedup)}",
            f"{words.shortened(metric.name, 40)} {words.score(candidate.metric, metric)}",
            what.word + (f": {'; '.join(what.reasons)}" if what.reasons else ""),
        ]
    )


def _labels(
    marks: Sequence[Mark],
    stairs: Sequence[tuple[float, float]],
    front_names: set[str],
    reference: str | None,
    room: Box,
) -> tuple[Label, ...]:
    """Names beside marks where there is room, the most telling marks first; the front is crossed last."""

    def rank(mark: Mark) -> int:
        if mark.kind in ("chosen", "best"):
            return 0
        if mark.name == reference:
            return 1
        return 2 if mark.name in front_names or mark.original else 3

    taken = [Box(m.x - 7, m.y - 7, m.x + 7, m.y + 7) for m in marks]
    steps = [
        box
        for (ax, ay), (bx, by) in pairwise(stairs)
        for box in (Box(ax, ay - 1, bx, ay + 1), Box(bx - 1, by, bx + 1, ay))
    ]
    labels: list[Label] = []
    for mark in sorted(marks, key=rank):
        if rank(mark) == 3 and len(marks) > 24:
            continue
        text = words.shortened(mark.name, 24)
        places = _places(mark, text)
        free = [place for place in places if place[1].inside(room) and not any(map(place[1].overlaps, taken))]
        clear = [place for place in free if not any(map(place[1].overlaps, steps))]
        if clear or (free and rank(mark) < 3):
            label, box = (clear or free)[0]
            labels.append(label)
            taken.append(box)
    return tuple(labels)


def _places(mark: Mark, text: str) -> list[tuple[Label, Box]]:
    """Where a mark's label may stand, the best place first."""
    shown = mark.kind in ("chosen", "best")
    long = len(text) * (_BOLD_CHARACTER if shown else _CHARACTER)
    gap = 14 if shown else 10  # the shown one has a ring around it
    back = {"start": 0.0, "middle": long / 2, "end": long}
    offsets = (
        (gap, 4, "start"),
        (-gap, 4, "end"),
        (0, -gap - 1, "middle"),
        (0, gap + 9, "middle"),
        (7, -9, "start"),
        (7, 17, "start"),
        (-7, -9, "end"),
        (-7, 17, "end"),
    )
    places = []
    for dx, dy, anchor in offsets:
        px, py = round(mark.x + dx, 2), round(mark.y + dy, 2)
        left = px - back[anchor]
        places.append((Label(px, py, text, anchor, mark.kind), Box(left, py - 10, left + long, py + 3)))
    return places


@dataclass(frozen=True)
class Whisker:
    """A speedup and its interval, in pixels."""

    low: float
    at: float
    high: float


@dataclass(frozen=True)
class Forest:
    """All candidates' speedups on one logarithmic axis, and the band of what ties with the shown one."""

    width: float
    whiskers: dict[str, Whisker]
    ticks: tuple[Tick, ...]
    one: float
    band: tuple[float, float] | None


def forest(report: Report) -> Forest | None:
    """Speedups to be drawn row by row beside the table; None where none was measured."""
    known = {c.name: c for c in report.candidates if c.speedup is not None and c.speedup > 0}
    if not known:
        return None
    ends = [math.log2(v) for c in known.values() for v in (c.speedup, c.speedup_low, c.speedup_high) if v]
    axis = Axis(min(*ends, -0.3) - 0.1, max(*ends, 0.3) + 0.1, 6.0, 154.0)

    def at(ratio: float) -> float:
        return axis.at(math.log2(ratio))

    whiskers = {
        name: Whisker(at(c.speedup_low or c.speedup), at(c.speedup), at(c.speedup_high or c.speedup))
        for name, c in known.items()
        if c.speedup is not None
    }
    powers = range(math.ceil(axis.low), math.floor(axis.high) + 1)
    stride = max(1, math.ceil(len(powers) / 5))
    ticks = tuple(Tick(axis.at(p), f"{2.0**p:g}{words.TIMES}") for p in powers if p % stride == 0)
    shown, band = report.shown, None
    if shown is not None and shown.name in known and shown.speedup:
        band = (at(shown.speedup / (1 + report.tie_band)), at(shown.speedup * (1 + report.tie_band)))
    return Forest(160.0, whiskers, ticks, at(1.0), band)


@dataclass(frozen=True)
class LayerBar:
    """One layer's place in the layer picture; pixels, None where not measured."""

    number: int
    x: float
    bytes_y: float
    weight_y: float | None
    output_y: float | None
    level: str
    lowest: bool
    tip: str


@dataclass(frozen=True)
class LayerTrack:
    """All layers in order: bytes as bars coloured by bits above, SQNR as dots below."""

    width: float
    height: float
    bar_width: float
    dot: float
    left: float
    right: float
    bytes_axis: Axis
    bytes_ticks: tuple[Tick, ...]
    sqnr_axis: Axis
    sqnr_ticks: tuple[Tick, ...]
    x_ticks: tuple[Tick, ...]
    bars: tuple[LayerBar, ...]
    strip: float
    """Top of the strip that shows each layer's bits as colour, so that small layers show theirs too."""
    caption: str


def level(bits: float | None) -> str:
    """The colour class of a width: "b4", "b8", "b16" or "b32" (the narrowest that holds it)."""
    if bits is None:
        return "b32"
    return next((f"b{top}" for top in (4, 8, 16) if bits <= top), "b32")


def layer_track(layers: Sequence[Layer]) -> LayerTrack | None:
    """The picture of the layers; None where there are none."""
    if not layers:
        return None
    width, height, left, right = 1080.0, 340.0, 66.0, 1070.0
    slot = (right - left) / len(layers)
    bar_width = min(44.0, max(slot - 1.5, slot * 0.82))
    largest = max((layer.bytes or 0 for layer in layers), default=0) or 1
    scale, unit = next(((s, u) for s, u in ((1e6, "MB"), (1e3, "kB")) if largest >= s), (1.0, "B"))
    bytes_axis = Axis(0.0, 1.05 * largest / scale, 118.0, 14.0)
    measured = [v for layer in layers for v in (layer.weight_sqnr_db, layer.output_sqnr_db) if v is not None]
    sqnr_axis = Axis(min(0.0, 0.0, *measured), 1.06 * max(30.0, 30.0, *measured), height - 40.0, 172.0)
    lowest = {
        id(layer)
        for layer in sorted(
            (one for one in layers if one.output_sqnr_db is not None),
            key=lambda one: one.output_sqnr_db or 0.0,
        )[:3]
    }

    def y(value: float | None) -> float | None:
        return None if value is None else sqnr_axis.at(value)

    bars = tuple(
        LayerBar(
            number=index + 1,
            x=round(left + (index + 0.5) * slot, 2),
            bytes_y=bytes_axis.at((layer.bytes or 0) / scale),
            weight_y=y(layer.weight_sqnr_db),
            output_y=y(layer.output_sqnr_db),
            level=level(layer.bits),
            lowest=id(layer) in lowest and len(layers) > 3,
            tip=f"{index + 1}  {layer.name}\n{layer.op} · {layer.scheme} · {words.size(layer.bytes)}\n"
            f"weights {words.decibel(layer.weight_sqnr_db)} · output {words.decibel(layer.output_sqnr_db)}",
        )
        for index, layer in enumerate(layers)
    )
    stride = next(s for p in range(9) for s in (10**p, 2 * 10**p, 5 * 10**p) if len(layers) / s <= 21)
    numbers = [1, *range(stride, len(layers) + 1, stride)] if stride > 1 else range(1, len(layers) + 1)
    return LayerTrack(
        width=width,
        height=height,
        bar_width=round(bar_width, 2),
        dot=round(min(4.5, max(1.8, slot * 0.36)), 2),
        left=left,
        right=right,
        bytes_axis=bytes_axis,
        bytes_ticks=tuple(Tick(t.at, f"{t.text} {unit}") for t in bytes_axis.ticks(3)),
        sqnr_axis=sqnr_axis,
        sqnr_ticks=sqnr_axis.ticks(4),
        x_ticks=tuple(Tick(bars[n - 1].x, str(n)) for n in numbers),
        bars=bars,
        strip=134.0,
        caption=f"Bytes and signal-to-noise ratio of {len(layers)} layers in order.",
    )


_COLD, _HOT = 60.0, 10.0
"""dB: a thousandth of the signal is lost, which nothing notices, and a third of it."""


@dataclass(frozen=True)
class Heat:
    """One cell of the heat map: a layer under a recipe; ``share`` is 0 for the closest and 1 for the most lost."""

    share: float
    text: str
    tip: str
    measured: str | None


@dataclass(frozen=True)
class HeatMap:
    """Layers down, recipes across; None where a recipe leaves a layer alone."""

    recipes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Heat | None, ...]], ...]
    low: str
    high: str


def heat_map(report: Report) -> HeatMap | None:
    """The picture of what each recipe does to each layer; None where nothing was rounded."""
    if not report.sensitivity:
        return None
    recipes = tuple(dict.fromkeys(one.recipe for one in report.sensitivity))
    layers = tuple(dict.fromkeys(one.layer for one in report.sensitivity))
    cells = {(one.layer, one.recipe): one for one in report.sensitivity}

    def cell(layer: str, recipe: str) -> Heat | None:
        one = cells.get((layer, recipe))
        if one is None:
            return None
        lost = 0.0 if one.sqnr_db is None else (_COLD - one.sqnr_db) / (_COLD - _HOT)
        measured = None
        if one.output_sqnr_db is not None:
            score = "" if one.metric is None else f", {words.score(one.metric, report.metric)}"
            measured = f"{words.decibel(one.output_sqnr_db)}{score}"
        text = "exact" if one.sqnr_db is None else words.number(one.sqnr_db, 0)
        tip = f"{layer}\n{recipe}: {one.scheme}\n{words.decibel(one.sqnr_db)}"
        return Heat(round(min(max(lost, 0.0), 1.0), 3), text, tip, measured)

    rows = tuple((layer, tuple(cell(layer, recipe) for recipe in recipes)) for layer in layers)
    return HeatMap(recipes, rows, words.decibel(_HOT), words.decibel(_COLD))


@dataclass(frozen=True)
class Mirror:
    """A histogram before (up from the middle) and after (down), counts on a logarithmic scale."""

    width: float
    height: float
    left: float
    right: float
    middle: float
    before: str
    after: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    caption: str


def mirror(histogram: Histogram) -> Mirror:
    """The picture of a Histogram."""
    width, height, left, right, middle, half = 1080.0, 300.0, 66.0, 1070.0, 138.0, 124.0
    low, high = histogram.edges[0], histogram.edges[-1]
    x = Axis(low, high if high > low else low + 1.0, left, right)
    top = math.log10(1 + max(*histogram.before, *histogram.after, 1))
    edges = [x.at(edge) for edge in histogram.edges]

    def reach(count: float) -> float:
        return round(half * math.log10(1 + count) / top, 2)

    def area(counts: Iterable[int], direction: int) -> str:
        steps = [
            f"V{round(middle + direction * reach(c), 2)}H{e}" for c, e in zip(counts, edges[1:], strict=True)
        ]
        return f"M{edges[0]} {middle}{''.join(steps)}V{middle}Z"

    # The lowest powers lie too close to the middle line to be written on both sides of it.
    powers = [p for p in (10**e for e in range(math.floor(top) + 1)) if reach(p) > 16]
    powers = powers[:: max(1, math.ceil(len(powers) / 3))]
    return Mirror(
        width=width,
        height=height,
        left=left,
        right=right,
        middle=middle,
        before=area(histogram.before, -1),
        after=area(histogram.after, +1),
        x_ticks=x.ticks(9),
        y_ticks=tuple(Tick(d * reach(p), f"{p:,}") for p in powers for d in (-1, 1)),
        caption=f"Weights of {histogram.layer} before and after.",
    )
