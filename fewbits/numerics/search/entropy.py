"""The range whose codes lose the least information, by Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbits.numerics.affine import CodeRange, Grid, fit_range, level_bounds, spanning
from fewbits.numerics.rows import Rows
from fewbits.numerics.steps import better


@dataclass(frozen=True, slots=True)
class Entropy:
    """The range whose codes lose the least information: least Kullback-Leibler divergence.

    Each row's histogram is clipped at shrinking ranges, its outliers counted at their ends, and compared with
    what the codes keep of it: one average per code. Meant for long rows, such as calibration data; where there
    are no fewer codes than bins nothing is clipped.
    Source: Migacz 2017, 8-bit Inference with TensorRT; here both ends shrink together.
    """

    bins: int = 2048
    candidates: int = 64
    smallest: float = 0.05

    def grid(self, rows: Rows, codes: CodeRange) -> Grid:
        """The grid of least divergence among the candidates of each row."""
        low, high = rows.ends
        whole = torch.ones_like(low, dtype=torch.float64)
        best = (torch.full_like(whole, -torch.inf), whole)
        if codes.steps < self.bins:
            histogram = _Histogram.of(rows, self.bins)
            for factor in torch.linspace(1, self.smallest, self.candidates).tolist():
                best = better(best, (-histogram.divergence(factor, codes), whole * factor))
        # A row of one value has nothing to clip.
        factor = torch.where(low == high, 1.0, best[1])
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
    def of(rows: Rows, bins: int) -> _Histogram:
        low, high = rows.ends
        bottom, top = low.clamp(max=0).double(), high.clamp(min=0).double()
        width = torch.where(top > bottom, (top - bottom) / bins, 1.0)
        values, weights = rows.points.values, rows.points.weights
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
