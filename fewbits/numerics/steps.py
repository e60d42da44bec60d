"""The step of least squared error between values and a step times given levels, for any set of levels.

A candidate step leads to levels, and least squares fits a better step to those. How much of the sum of squares
the levels explain once it is fitted, ``(sum x l)^2 / sum l^2``, is what candidates are judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fewbits.numerics.affine import LARGEST_VALUE, SMALLEST_SCALE
from fewbits.numerics.rows import Points

NearestLevel = Callable[[Tensor], Tensor]  # of values in steps, as a new tensor of the same shape

Candidate = TypeVar("Candidate", bound=tuple[Tensor, ...])


def better(first: Candidate, second: Candidate) -> Candidate:
    """Row by row the candidate whose first part, its score, is higher; the first one where they tie."""
    higher = second[0] > first[0]
    return type(first)(torch.where(higher, b, a) for a, b in zip(first, second, strict=True))


def misfit(points: Points, step: Tensor, nearest: NearestLevel) -> Tensor:
    """The squared error of each row at a step, (channels, groups, 1)."""
    error = nearest(points.values / step).mul_(step).sub_(points.values)
    return points.total(error.square_())


def times(scale: Tensor, step: Tensor | float, reach: float) -> Tensor:
    """The scale times the step found for it; where a level as large as ``reach`` would then overflow, the scale."""
    found = scale * step
    return torch.where(found * reach <= LARGEST_VALUE, found, scale).clamp_(min=SMALLEST_SCALE)


def best_step(
    points: Points,
    nearest: NearestLevel,
    coarse: tuple[float, ...],
    fine: tuple[float, ...],
    refinements: int,
    bounds: tuple[Tensor | int, Tensor | int] | None = None,
) -> Tensor:
    """The best step found for each row, whose values are given in units of the step that spans them.

    ``coarse`` factors shrink the spanning step, ``fine`` ones then move the best of them; last, rounding and
    fitting alternate. The result is never worse than 1, the spanning step. Given the lowest and the highest level,
    ``bounds``, descending ``coarse`` factors end where a shorter step gains nothing for any row.
    """
    whole = torch.ones_like(points.values[..., :1])
    level = nearest(points.values.clone())
    unchanged = points.total((level - points.values).square_())
    best = fitted_to(points, level, whole)
    shortest = None if bounds is None else _shortest(points, bounds)
    for factor in coarse:
        if shortest is not None and bool((shortest(best[0]) > factor).all()):
            break
        best = better(best, _fitted(points, whole * factor, nearest))
    _, found = best
    for factor in fine:
        best = better(best, _fitted(points, found * factor, nearest))
    for _ in range(refinements):
        best = better(best, _fitted(points, best[1], nearest))
    _, step = best
    # With many levels the gains differ by less than float32 resolves: the errors themselves decide.
    return torch.where(misfit(points, step, nearest) < unchanged, step, whole)


def _shortest(points: Points, bounds: tuple[Tensor | int, Tensor | int]) -> Callable[[Tensor], Tensor]:
    """The shortest step that can lose less than what explains that much of each row.

    A step clips the largest value to the highest level, and what is cut off is lost: a shorter step loses more in
    that one value than the other in all. So it is at the lowest value and level. The step fitted to a shorter one's
    levels may be longer again, and only there can something be missed: 3 of 450 random matrices got other codes, one
    in 7,000 of theirs, and no more error.
    """
    squares = points.total(points.values.square())
    least, largest = points.values.amin(dim=-1, keepdim=True), points.values.amax(dim=-1, keepdim=True)
    lowest, highest = (torch.as_tensor(level, dtype=torch.float32, device=squares.device) for level in bounds)

    def shortest(explained: Tensor) -> Tensor:
        # Of the squares, float32 knows no more than six digits.
        lost = (squares - explained).clamp_(min=0).add_(squares, alpha=1e-6).sqrt_()
        up = torch.where(highest > 0, (largest - lost) / highest, 0.0)
        down = torch.where(lowest < 0, (least + lost) / lowest, 0.0)
        return torch.maximum(up, down)

    return shortest


def _fitted(points: Points, step: Tensor, nearest: NearestLevel) -> tuple[Tensor, Tensor]:
    """What the levels at a step explain, and the step fitted to them."""
    return fitted_to(points, nearest(points.values / step), step)


def fitted_to(points: Points, level: Tensor, step: Tensor | float) -> tuple[Tensor, Tensor]:
    """What levels that are known explain, and the step fitted to them; the levels are overwritten."""
    inner = points.total(points.values * level)
    power = points.total(level.square_())
    fitted = torch.where(power > 0, inner / power, step)
    return inner * fitted, fitted
