"""Choosing the grid of uniform rows: each search is a small record, named in ``SEARCHES``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.affine import SMALLEST_SCALE, CodeRange, Grid, fit_range, nonzero, span
from fewbits.numerics.sample import Points, Sample


class Search(Protocol):
    """What picks the grid of each row of a sample."""

    def grid(self, sample: Sample, codes: CodeRange) -> Grid:
        """The grid of each row."""
        ...


def spanning(low: Tensor, high: Tensor, codes: CodeRange) -> Grid:
    """The grid that reaches from ``low`` to ``high``; where they are equal the step is that one value.

    A row of one value c is then ``c * 1`` and exact, which ``c / qmax * qmax`` is not.
    """
    scale, zero_point = fit_range(low, high, codes)
    constant = low == high
    if bool(constant.any()):
        scale = torch.where(constant, nonzero(low.abs(), low, high), scale)
        if zero_point is not None and not codes.symmetric:
            zero_point = torch.where(constant, codes.qmin + (low < 0).int(), zero_point)
    return Grid(scale, zero_point)


@dataclass(frozen=True, slots=True)
class MinMax:
    """The whole range: nothing is clipped."""

    def grid(self, sample: Sample, codes: CodeRange) -> Grid:
        """The grid that reaches both ends of each row."""
        return spanning(*sample.ends, codes)


@dataclass(frozen=True, slots=True)
class Percentile:
    """The range that leaves out half of ``100 - inside`` percent of the values on each side."""

    inside: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.inside <= 100:
            raise InputError(f"a percentile is above 0 and at most 100, got {self.inside}")

    def grid(self, sample: Sample, codes: CodeRange) -> Grid:
        """The grid over that share of each row, interpolated between neighbouring values."""
        values, order = sample.points.values.sort(dim=-1)
        weights = torch.ones_like(values) if sample.points.weights is None else sample.points.weights
        weights = weights.gather(-1, order).double()
        # A point stands for a run of elements: its rank is the middle of theirs, counted from 0.
        rank = weights.cumsum(-1) - (weights + 1) / 2
        last = weights.sum(dim=-1, keepdim=True) - 1
        tail = (100 - self.inside) / 200
        low, high = _at_rank(values, rank, last * tail), _at_rank(values, rank, last * (1 - tail))
        return spanning(low, high, codes)


def _at_rank(values: Tensor, rank: Tensor, wanted: Tensor) -> Tensor:
    upper = torch.searchsorted(rank, wanted).clamp_(max=values.shape[-1] - 1)
    lower = (upper - 1).clamp_(min=0)
    before, after = rank.gather(-1, lower), rank.gather(-1, upper)
    share = ((wanted - before) / (after - before).clamp_(min=1e-9)).clamp_(0, 1)
    return torch.lerp(values.gather(-1, lower).double(), values.gather(-1, upper).double(), share).float()


@dataclass(frozen=True, slots=True)
class MeanSquare:
    """The grid of least mean squared error whose zero point is a code.

    ``coarse`` factors shrink the whole range, ``fine`` ones then move the best of them. Each is judged by the
    error left once its step is fitted to its codes by least squares; last, rounding and fitting alternate.
    """

    coarse: tuple[float, ...] = tuple(0.8**k for k in range(1, 18))
    fine: tuple[float, ...] = (0.87, 0.93, 1.07, 1.14)
    refinements: int = 3

    def grid(self, sample: Sample, codes: CodeRange) -> Grid:
        """The best grid found for each row."""
        start = spanning(*sample.ends, codes)
        bounds = level_bounds(start.zero_point, codes)
        # In units of the first step nothing overflows or underflows.
        points = Points(sample.points.values / start.scale, sample.points.weights)
        whole = torch.ones_like(start.scale)
        best = _fit_step(points, whole, bounds)
        for factor in self.coarse:
            best = _better(best, _fit_step(points, whole * factor, bounds))
        coarse = best.step
        for factor in self.fine:
            best = _better(best, _fit_step(points, coarse * factor, bounds))
        for _ in range(self.refinements):
            best = _better(best, _fit_step(points, best.step, bounds))
        # With many codes the gains differ by less than float32 resolves: never do worse than the whole range.
        worse = _misfit(points, best.step, bounds) >= _misfit(points, whole, bounds)
        step = (start.scale * best.step).clamp(min=SMALLEST_SCALE)
        return Grid(torch.where(worse, start.scale, step), start.zero_point)


@dataclass(frozen=True, slots=True)
class _Line:
    """Levels at ``offset + level * step``, and how much of the sum of squares they explain, for each row."""

    gain: Tensor
    step: Tensor
    offset: Tensor


def _better(first: _Line, second: _Line) -> _Line:
    """Row by row the line that explains more."""
    better = second.gain > first.gain
    return _Line(
        torch.where(better, second.gain, first.gain),
        torch.where(better, second.step, first.step),
        torch.where(better, second.offset, first.offset),
    )


def _misfit(points: Points, step: Tensor, bounds: Bounds) -> Tensor:
    """The squared error at ``step``."""
    error = (points.values / step).round_().clamp_(*bounds).mul_(step).sub_(points.values)
    return points.total(error.square_())


def _fit_step(points: Points, step: Tensor, bounds: Bounds) -> _Line:
    """The step fitted by least squares to the codes that the given one leads to, through zero."""
    level = (points.values / step).round_().clamp_(*bounds)
    inner = points.total(points.values * level)
    power = points.total(level.square_())
    used = power > 0
    fitted = torch.where(used, inner / power, step)
    return _Line(torch.where(used, inner * fitted, 0.0), fitted, torch.zeros_like(fitted))


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """The grid of least mean squared error with a free zero point: it need not be a code.

    ``starts`` shrink the whole range; each is judged by the error left once step and zero point are fitted to
    its codes by least squares. From the best, rounding and fitting alternate.
    """

    starts: tuple[float, ...] = tuple(0.75**k for k in range(6))
    refinements: int = 6

    def grid(self, sample: Sample, codes: CodeRange) -> Grid:
        """The best grid found for each row."""
        low, high = sample.ends
        scale = span(low, high, codes).clamp_(min=SMALLEST_SCALE).masked_fill_(low == high, 1.0)
        points = Points((sample.points.values / scale).sub_(low / scale), sample.points.weights)
        mean = points.total(points.values) / points.count()
        # Ranges shrink towards zero, or the end nearest to it, so that one-sided rows keep that end.
        center = (torch.zeros_like(low).clamp(low, high) - low) / scale
        best = _Line(torch.full_like(scale, -1.0), torch.ones_like(scale), torch.zeros_like(scale))
        for start in self.starts:
            line = _fit_line(points, mean, torch.full_like(scale, start), center * (1 - start), codes)
            best = _better(best, line)
        for _ in range(self.refinements):
            best = _better(best, _fit_line(points, mean, best.step, best.offset, codes))
        step = (scale * best.step).clamp(min=SMALLEST_SCALE)
        return Grid(step, free_zero_point=codes.qmin - (low + best.offset * scale) / step)


def _fit_line(points: Points, mean: Tensor, step: Tensor, offset: Tensor, codes: CodeRange) -> _Line:
    """The line fitted by least squares to the codes that the given one leads to."""
    level = (points.values / step).sub_(offset / step).round_().clamp_(0, codes.steps)
    middle = points.total(level) / points.count()
    level -= middle
    covariance = points.total(points.values * level)
    variance = points.total(level.square_())
    used = variance > 0
    fitted = torch.where(used, covariance / variance, step)
    return _Line(torch.where(used, covariance * fitted, 0.0), fitted, mean - middle * fitted)


@dataclass(frozen=True, slots=True)
class HalfQuadratic:
    """A free zero point that minimizes the p-norm of the error, p below 1, by half-quadratic splitting.

    The step is that of the whole range; ``symmetric=False`` gives it all the codes of a signed row. Large errors
    count less than in the square, so outliers weigh less. The error is measured in steps, which makes the result
    independent of the tensor's own unit.
    Source: Badri and Shaji 2023, Half-Quadratic Quantization, with its constants.
    """

    norm: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    iterations: int = 20

    def grid(self, sample: Sample, codes: CodeRange) -> Grid:
        """The grid of each row whose mean absolute error was the least on the way."""
        low, high = sample.ends
        scale = span(low, high, codes).clamp_(min=SMALLEST_SCALE).masked_fill_(low == high, 1.0)
        points = Points(sample.points.values / scale, sample.points.weights)
        count = points.count()
        zero = codes.qmin - low / scale
        best, least = zero, torch.full_like(scale, torch.inf)
        beta = self.beta
        for _ in range(self.iterations):
            code = (points.values + zero).round_().clamp_(codes.qmin, codes.qmax)
            error = points.values - (code - zero)
            size = error.abs()
            shrunk = error.sign() * (size - size.pow(self.norm - 1) / beta).clamp_(min=0)
            distance = points.total(size)
            better = distance < least
            least, best = torch.where(better, distance, least), torch.where(better, zero, best)
            zero = points.total(code - points.values + shrunk) / count
            beta *= self.growth
        return Grid(scale, free_zero_point=best)


@dataclass(frozen=True, slots=True)
class Entropy:
    """The range whose codes lose the least information: least Kullback-Leibler divergence.

    Each row's histogram is clipped at shrinking ranges, its outliers counted at their ends, and compared with
    what the codes keep of it: one average per code. Meant for long rows, such as calibration data.
    Source: Migacz 2017, 8-bit Inference with TensorRT; here both ends shrink together.
    """

    bins: int = 2048
    candidates: int = 64
    smallest: float = 0.05

    def grid(self, sample: Sample, codes: CodeRange) -> Grid:
        """The grid of least divergence among the candidates of each row."""
        low, high = sample.ends
        factor = torch.ones_like(low, dtype=torch.float64)
        if codes.steps < self.bins:
            histogram = _Histogram.of(sample, self.bins)
            least = torch.full_like(factor, torch.inf)
            for candidate in torch.linspace(1, self.smallest, self.candidates).tolist():
                divergence = histogram.divergence(candidate, codes)
                better = divergence < least
                least, factor = torch.where(better, divergence, least), factor.masked_fill(better, candidate)
        # A row of one value has nothing to clip.
        factor = torch.where(low == high, 1.0, factor)
        return spanning((low * factor).float(), (high * factor).float(), codes)


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Equal bins from ``bottom`` to ``top``, (channels, groups, 1), of each row, with running sums.

    The running sums, (channels, groups, bins + 1) from zero, are of the counts, of the occupied bins and of
    count * ln count: all that the divergence needs of the bins behind one code.
    """

    bottom: Tensor
    top: Tensor
    counts: Tensor
    count: Tensor
    occupied: Tensor
    information: Tensor

    @staticmethod
    def of(sample: Sample, bins: int) -> _Histogram:
        low, high = sample.ends
        bottom, top = low.clamp(max=0).double(), high.clamp(min=0).double()
        width = torch.where(top > bottom, (top - bottom) / bins, 1.0)
        values, weights = sample.points.values, sample.points.weights
        index = ((values.double() - bottom) / width).long().clamp_(0, bins - 1)
        weights = torch.ones_like(values) if weights is None else weights
        counts = torch.zeros(*index.shape[:-1], bins, dtype=torch.float64, device=index.device)
        counts.scatter_add_(-1, index, weights.double())
        running = [
            torch.nn.functional.pad(s.cumsum(-1), (1, 0))
            for s in (counts, (counts > 0).double(), _xlogx(counts))
        ]
        return _Histogram(bottom, top, counts, *running)

    def divergence(self, factor: float, codes: CodeRange) -> Tensor:
        """KL divergence, from the histogram clipped to ``factor`` of its range, of what the codes keep of it.

        Clipping counts what lies outside in the outermost bins inside; a code keeps the average of the
        occupied bins it stands for.
        """
        bins = self.counts.shape[-1]
        width = (self.top - self.bottom).clamp(min=1e-300) / bins
        scale, zero_point = fit_range((self.bottom * factor).float(), (self.top * factor).float(), codes)
        lowest, _ = level_bounds(zero_point, codes)
        between = torch.arange(codes.steps, device=scale.device) + lowest + 0.5
        first = self._bin(self.bottom * factor, width)
        last = self._bin(self.top * factor, width).maximum(first + 1)
        cuts = self._bin(between * scale.double(), width).clamp(first, last)
        cuts = torch.cat([first, cuts, last], dim=-1)
        mass = self.count.gather(-1, cuts).diff(dim=-1)
        average = mass / self.occupied.gather(-1, cuts).diff(dim=-1).clamp_(min=1)
        total = self.count[..., -1:]
        kept = mass.sum(dim=-1, keepdim=True).clamp_(min=1)
        q = (average / kept).clamp_(min=1e-12)
        own = self.information.gather(-1, last) - self.information.gather(-1, first)
        crossed = (mass * q.log()).sum(dim=-1, keepdim=True)
        edges = (first, self.count.gather(-1, first)), (last - 1, total - self.count.gather(-1, last))
        for edge, outside in edges:
            inside = self.counts.gather(-1, edge)
            own += _xlogx(inside + outside) - _xlogx(inside)
            code = torch.searchsorted(cuts, edge, right=True).clamp_(1, codes.steps + 1) - 1
            crossed += outside * torch.where(inside > 0, q.gather(-1, code), 1e-12).log()
        return (own - crossed) / total - total.log()

    def _bin(self, value: Tensor, width: Tensor) -> Tensor:
        """The first bin whose middle is above a value."""
        return ((value - self.bottom) / width + 0.5).floor().long().clamp_(0, self.counts.shape[-1])


def _xlogx(x: Tensor) -> Tensor:
    return torch.special.xlogy(x, x)


Bounds = tuple[Tensor, Tensor] | tuple[int, int]


def level_bounds(zero_point: Tensor | None, codes: CodeRange) -> Bounds:
    """The lowest and highest code less the zero point."""
    if zero_point is None:
        return codes.qmin, codes.qmax
    zero = zero_point.float()
    return codes.qmin - zero, codes.qmax - zero


SEARCHES: dict[str, Search] = {
    "minmax": MinMax(),
    "percentile": Percentile(),
    "entropy": Entropy(),
    "mse": MeanSquare(),
    "least_squares": LeastSquares(),
    "half_quadratic": HalfQuadratic(),
}


def find_search(search: str | Search) -> Search:
    """The search of that name; a search is returned as it is. Raises InputError for an unknown name."""
    if not isinstance(search, str):
        return search
    try:
        return SEARCHES[search]
    except KeyError:
        raise InputError(f"unknown search {search!r}; known are {', '.join(SEARCHES)}") from None
