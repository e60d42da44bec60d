"""What a fit may ask of its rows: their ends, their values, or few weighted points that stand for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewbits.numerics.cells import cells_of
from fewbits.numerics.layout import block_size


@dataclass(frozen=True)
class Points:
    """Values (channels, groups, points) in float32 and how many elements each stands for (None: one)."""

    values: Tensor
    weights: Tensor | None

    def total(self, terms: Tensor) -> Tensor:
        """The weighted sum over each row, (channels, groups, 1)."""
        return (terms if self.weights is None else terms * self.weights).sum(dim=-1, keepdim=True)

    def count(self) -> Tensor:
        """How many elements each row stands for, (channels, groups, 1)."""
        if self.weights is not None:
            return self.weights.sum(dim=-1, keepdim=True)
        return torch.full_like(self.values[..., :1], self.values.shape[-1])

    def ascending(self) -> tuple[Tensor, Tensor]:
        """Each row's values in order and their weights, float32."""
        values, order = self.values.sort(dim=-1)
        weights = torch.ones_like(values) if self.weights is None else self.weights.gather(-1, order)
        return values, weights


class Rows:
    """Rows (channels, groups, length) of any floating dtype, read in float32.

    Nothing is computed before it is asked for: the whole range needs the ends alone, a search the points.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._size = block_size(values)
        self._long = values.shape[-1] > self._size

    @property
    def length(self) -> int:
        """Elements of each row."""
        return self._values.shape[-1]

    @property
    def parts(self) -> list[slice]:
        """Elements of the rows that are worked on at a time."""
        length = self._values.shape[-1]
        size = self._size if self._long else length
        return [slice(start, start + size) for start in range(0, length, size)]

    def part(self, elements: slice) -> Tensor:
        """One of the parts, (channels, groups, elements) float32."""
        return self._values[..., elements].float() if self._long else self._whole

    @cached_property
    def _whole(self) -> Tensor:
        return self._values.float()

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of each row, (channels, groups, 1); NaN where there is one."""
        values = self._values if self._long else self._whole
        return values.amin(dim=-1, keepdim=True).float(), values.amax(dim=-1, keepdim=True).float()

    @property
    def finite(self) -> bool:
        """Whether every value is finite."""
        low, high = self.ends
        # One sum tells, unless it overflows; then the ends are looked at.
        return math.isfinite(float((high - low).sum())) or all(
            bool(torch.isfinite(end).all()) for end in (low, high)
        )

    @cached_property
    def points(self) -> Points:
        """The values themselves; of a row longer than a block, ascending means of its cells."""
        if not self._long:
            return Points(self._whole, None)
        values, weights = cells_of(self._values.reshape(-1))
        return Points(values.float().view(1, 1, -1), weights.float().view(1, 1, -1))
