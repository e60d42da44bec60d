"""The step of a sum of two quantized tensors, kept clear of ties.

An engine adds codes in float32, each in its own order; the arithmetic of the file is exact. A pair of codes whose sum
lies within float32's error of the middle between two codes is rounded up by one and down by the other, wherever it
occurs. There are few such pairs, others for every step, and a step a millionth larger may have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

STRIDE = 2e-6
STRIDES = 400
WIDEST = 256  # codes; with more there is a pair near every tie


@dataclass(frozen=True)
class Grid:
    """A tensor's codes from ``low`` to ``high``: ``real = scale * (code - zero_point)``."""

    scale: float
    zero_point: int
    low: int
    high: int

    @property
    def values(self) -> np.ndarray:
        """What the codes stand for, float64 [codes]."""
        return self.scale * (np.arange(self.low, self.high + 1) - float(self.zero_point))


def margin(first: Grid, second: Grid, total: Grid) -> float:
    """How far the pair of codes that is next to a tie is from it, in codes of the total; infinite without a pair."""
    places = (first.values[:, None] + second.values[None]) / total.scale + total.zero_point
    inside = places[(places > total.low) & (places < total.high)]
    return float(np.abs(inside - np.floor(inside) - 0.5).min(initial=np.inf))


def float32_error(first: Grid, second: Grid, total: Grid) -> float:
    """About what a sum in float32 is off at most, in codes of the total: half a unit in the last place of its parts."""
    parts = (max(abs(one.low), abs(one.high)) * one.scale / total.scale for one in (first, second, total))
    return sum(parts) * 2.0**-24


def clear_step(first: Grid, second: Grid, total: Grid) -> float:
    """The step of the total nearest to what it is that keeps every pair of codes off ties by float32's error.

    Answers a float32, at most a part in 1,000 away; where no step does, that with the widest margin, and the step as it
    is where a tensor has more than 256 codes.
    """
    if max(one.high - one.low for one in (first, second, total)) >= WIDEST:
        return total.scale
    widest, best = 0.0, total.scale
    for stride in sorted(range(-STRIDES, STRIDES + 1), key=abs):
        moved = replace(total, scale=float(np.float32(total.scale * (1 + stride * STRIDE))))
        found = margin(first, second, moved)
        if found > widest:
            widest, best = found, moved.scale
        if found >= float32_error(first, second, moved):
            break
    return best
