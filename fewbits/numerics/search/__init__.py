"""Choosing the grid of uniform rows: each search is a small record, named in ``SEARCHES``."""

from __future__ import annotations

from typing import Protocol

from fewbits.errors import InputError
from fewbits.numerics.affine import CodeRange, Grid
from fewbits.numerics.rows import Rows
from fewbits.numerics.search.entropy import Entropy
from fewbits.numerics.search.least_error import HalfQuadratic, LeastSquares, LikelyRanges, MeanSquare
from fewbits.numerics.search.ranges import MinMax, Percentile


class Search(Protocol):
    """What picks the grid of each row."""

    def grid(self, rows: Rows, codes: CodeRange) -> Grid:
        """The grid of each row, its parameters (channels, groups, 1)."""
        ...


SEARCHES: dict[str, Search] = {
    "minmax": MinMax(),
    "percentile": Percentile(),
    "entropy": Entropy(),
    "mse": MeanSquare(),
    "likely": LikelyRanges(),
    "least_squares": LeastSquares(),
    "half_quadratic": HalfQuadratic(),
}


def find_search(search: str | Search) -> Search:
    """The search of that name; a search is returned as it is. Raises InputError for an unknown one."""
    if isinstance(search, str) and search in SEARCHES:
        return SEARCHES[search]
    if hasattr(search, "grid"):
        return search
    raise InputError(f"unknown search {search!r}; known are {', '.join(SEARCHES)}")
