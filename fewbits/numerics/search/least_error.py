"""Grids of least error: squared, with and without a free zero point, and of a norm below 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from fewbits.numerics.affine import SMALLEST_SCALE, Bounds, CodeRange, Grid, level_bounds, span, spanning
from fewbits.numerics.rows import Points, Rows
from fewbits.numerics.steps import NearestLevel, best_step, better, fitted_to, misfit, times

MANY = 256  # steps: from here on gains differ by less than float32 resolves, and the errors themselves decide


def _in_first_steps(rows: Rows, codes: CodeRange) -> tuple[Grid, Points, NearestLevel, Bounds]:
    """The spanning grid; in its steps, where nothing overflows, the values; what rounds them; the ends of levels."""
    start = spanning(*rows.ends, codes)
    bounds = level_bounds(start.zero_point, codes)

    def nearest(values: Tensor) -> Tensor:
        return values.round_().clamp_(*bounds)

    return start, Points(rows.points.values / start.scale, rows.points.weights), nearest, bounds


@dataclass(frozen=True, slots=True)
class MeanSquare:
    """The grid of least mean squared error whose zero point is a code; see ``best_step`` for the fields.

    Source: Nagel et al. 2021, "A White Paper on Neural Network Quantization" (arXiv:2106.08295), section 3.1, for the
    criterion.
    """

    coarse: tuple[float, ...] = tuple(0.8**k for k in range(1, 18))
    fine: tuple[float, ...] = (0.87, 0.93, 1.07, 1.14)
    refinements: int = 3

    def grid(self, rows: Rows, codes: CodeRange) -> Grid:
        """The best grid found for each row."""
        start, points, nearest, bounds = _in_first_steps(rows, codes)
        step = best_step(points, nearest, self.coarse, self.fine, self.refinements, bounds)
        return Grid(times(start.scale, step, codes.steps), start.zero_point)


@dataclass(frozen=True, slots=True)
class LikelyRanges:
    """The grid of least mean squared error among the few ranges that are worth a try in rows of this length.

    Where one value alone reaches the end, m, and all ``length`` values lose what even spacing loses,
    ``step ** 2 / 12``, clipping to the share s of the range costs ``((1 - s) m) ** 2`` and leaves
    ``length (s m / top) ** 2 / 12``, top being half the steps. The sum is least at
    ``s = 1 / (1 + length / (12 top ** 2))``; with more values near the end less is to be clipped. So the whole range
    and powers of ``ratio`` are tried, the last the first at or below that share: 2 for 128 values in 4 bits.
    """

    ratio: float = 0.9

    def grid(self, rows: Rows, codes: CodeRange) -> Grid:
        """The best grid found for each row; none loses more than the whole range."""
        start, points, nearest, _ = _in_first_steps(rows, codes)
        shares = self.shares(rows.length, codes)
        fits = (fitted_to(points, nearest(points.values / share), 1.0) for share in shares)
        _, step = reduce(better, fits)
        if codes.steps >= MANY:
            whole = torch.ones_like(step)
            step = torch.where(misfit(points, step, nearest) < misfit(points, whole, nearest), step, whole)
        return Grid(times(start.scale, step, codes.steps), start.zero_point)

    def shares(self, length: int, codes: CodeRange) -> tuple[float, ...]:
        """Of the range: all of it first."""
        lowest = 1 / (1 + length / (3 * codes.steps**2))
        return tuple(self.ratio**k for k in range(math.ceil(math.log(lowest) / math.log(self.ratio)) + 1))


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """The grid of least mean squared error with a free zero point: it need not be a code.

    ``starts`` shrink the whole range; each is judged by the error left once step and zero point are fitted to
    its codes by least squares. From the best, rounding and fitting alternate.
    """

    starts: tuple[float, ...] = tuple(0.75**k for k in range(6))
    refinements: int = 6

    def grid(self, rows: Rows, codes: CodeRange) -> Grid:
        """The best grid found for each row."""
        low, scale = rows.ends[0], _unit(rows, codes)
        points = Points((rows.points.values / scale).sub_(low / scale), rows.points.weights)
        mean = points.total(points.values) / points.count()
        # Ranges shrink towards zero, or the end nearest to it, so that one-sided rows keep that end.
        center = (torch.zeros_like(low).clamp(*rows.ends) - low) / scale
        best = (torch.full_like(scale, -1.0), torch.ones_like(scale), torch.zeros_like(scale))
        for start in self.starts:
            line = _fitted_line(points, mean, torch.full_like(scale, start), center * (1 - start), codes)
            best = better(best, line)
        for _ in range(self.refinements):
            best = better(best, _fitted_line(points, mean, best[1], best[2], codes))
        step = (scale * best[1]).clamp(min=SMALLEST_SCALE)
        # Counted in the first steps, the lowest level overflows for no range.
        return Grid(step, free_zero_point=codes.qmin - (low / scale + best[2]) * (scale / step))


def _unit(rows: Rows, codes: CodeRange) -> Tensor:
    """The step that takes all the codes over each row's own range, which need not hold zero."""
    low, high = rows.ends
    return span(low, high, codes).clamp_(min=SMALLEST_SCALE).masked_fill_(low == high, 1.0)


def _fitted_line(
    points: Points, mean: Tensor, step: Tensor, offset: Tensor, codes: CodeRange
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit ``offset + level * step`` to the levels that the given line leads to: what it explains, step, offset."""
    level = (points.values / step).sub_(offset / step).round_().clamp_(0, codes.steps)
    middle = points.total(level) / points.count()
    level -= middle
    covariance = points.total(points.values * level)
    variance = points.total(level.square_())
    used = variance > 0
    fitted = torch.where(used, covariance / variance, step)
    return torch.where(used, covariance * fitted, 0.0), fitted, mean - middle * fitted


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

    def grid(self, rows: Rows, codes: CodeRange) -> Grid:
        """The grid of each row whose mean absolute error was the least on the way."""
        scale = _unit(rows, codes)
        points = Points(rows.points.values / scale, rows.points.weights)
        count = points.count()
        zero = codes.qmin - rows.ends[0] / scale
        best = (torch.full_like(scale, -torch.inf), zero)
        beta = self.beta
        for _ in range(self.iterations):
            code = (points.values + zero).round_().clamp_(codes.qmin, codes.qmax)
            error = points.values - (code - zero)
            size = error.abs()
            best = better(best, (-points.total(size), zero))
            shrunk = error.sign() * (size - size.pow(self.norm - 1) / beta).clamp_(min=0)
            zero = points.total(code - points.values + shrunk) / count
            beta *= self.growth
        return Grid(scale, free_zero_point=best[1])
