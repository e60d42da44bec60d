"""Choosing the range of a uniform grid: each search is a small record, named in ``SEARCHES``.

A search sees rows of finite float32 values, (channels, groups, length), and their ends,
(channels, groups, 1), and returns a Grid for each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.affine import SMALLEST_SCALE, CodeRange, fit_range


@dataclass(frozen=True, slots=True)
class Grid:
    """The parameters of uniform rows, each (channels, groups, 1): float32 scale, int32 zero point."""

    scale: Tensor
    zero_point: Tensor | None


class Search(Protocol):
    """What picks the range."""

    def grid(self, rows: Tensor, low: Tensor, high: Tensor, codes: CodeRange) -> Grid:
        """The grid of each row."""
        ...


@dataclass(frozen=True, slots=True)
class MinMax:
    """The whole range: nothing is clipped."""

    def grid(self, rows: Tensor, low: Tensor, high: Tensor, codes: CodeRange) -> Grid:
        """The grid that spans each row's ends."""
        scale, zero_point = fit_range(low, high, codes)
        return Grid(scale, zero_point)


@dataclass(frozen=True, slots=True)
class MeanSquare:
    """The range of least mean squared error: shrunken ranges are tried, the best is refined.

    ``candidates`` shrink factors between ``smallest`` and 1 are compared.
    """

    candidates: int = 20
    smallest: float = 0.4

    def grid(self, rows: Tensor, low: Tensor, high: Tensor, codes: CodeRange) -> Grid:
        """The best grid of each row found."""
        best_scale, best_zero = fit_range(low, high, codes)
        best = _squared_error(rows, best_scale, best_zero, codes)
        for number in range(self.candidates - 1):
            factor = self.smallest + (1 - self.smallest) * number / (self.candidates - 1)
            scale, zero = fit_range(low * factor, high * factor, codes)
            error = _squared_error(rows, scale, zero, codes)
            better = error < best
            best = torch.where(better, error, best)
            best_scale = torch.where(better, scale, best_scale)
            if zero is not None and best_zero is not None:
                best_zero = torch.where(better, zero, best_zero)
        return Grid(best_scale, best_zero)


def _levels(rows: Tensor, scale: Tensor, zero_point: Tensor | None, codes: CodeRange) -> Tensor:
    """Codes less their zero point, in float32."""
    levels = torch.div(rows, scale).round_()
    if zero_point is None:
        return levels.clamp_(codes.qmin, codes.qmax)
    return levels.clamp_(codes.qmin - zero_point, codes.qmax - zero_point)


def _squared_error(rows: Tensor, scale: Tensor, zero_point: Tensor | None, codes: CodeRange) -> Tensor:
    error = _levels(rows, scale, zero_point, codes).mul_(scale).sub_(rows)
    # In units of the step, so that tiny and huge rows neither underflow nor overflow.
    error.div_(scale.clamp(min=SMALLEST_SCALE))
    return error.square_().sum(dim=-1, keepdim=True) * scale.double().square()


SEARCHES: dict[str, Search] = {"minmax": MinMax(), "mse": MeanSquare()}


def find_search(search: str | Search) -> Search:
    """The search of that name; a search is returned as it is. Raises InputError for an unknown name."""
    if not isinstance(search, str):
        return search
    try:
        return SEARCHES[search]
    except KeyError:
        raise InputError(f"unknown search {search!r}; known are {', '.join(SEARCHES)}") from None
