"""Grids over a range of the values: the whole one, or all but its tails."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.affine import CodeRange, Grid, spanning
from fewbits.numerics.rows import Rows


@dataclass(frozen=True, slots=True)
class MinMax:
    """The whole range: nothing is clipped."""

    def grid(self, rows: Rows, codes: CodeRange) -> Grid:
        """The grid that reaches both ends of each row."""
        return spanning(*rows.ends, codes)


@dataclass(frozen=True, slots=True)
class Percentile:
    """The range that leaves out half of ``100 - inside`` percent of the values on each side.

    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference" (arXiv:2004.09602), on calibration.
    """

    inside: float = 99.99

    def __post_init__(self) -> None:
        if not 0 < self.inside <= 100:
            raise InputError(f"a percentile is above 0 and at most 100, got {self.inside}")

    def grid(self, rows: Rows, codes: CodeRange) -> Grid:
        """The grid over that share of each row, interpolated between neighbouring values."""
        values, weights = rows.points.ascending()
        weights = weights.double()
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
