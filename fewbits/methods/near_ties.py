"""The step of a sum of two quantized tensors, kept clear of ties.

An engine adds codes in float32, each in its own order; the arithmetic of the file is exact. A pair of codes whose sum
lies within float32's error of the middle between two codes is rounded up by one and down by the other, wherever it
occurs. There are few such pairs, others for every step, and a step a millionth larger may have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

NEAR = 4e-5
"""Of a code: the error of a sum of four float32 numbers below 256, rounded up."""
STRIDE = 2e-6
STRIDES = 400
WIDEST = 256  # codes; with more there are pairs near every tie


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


def near_ties(first: Grid, second: Grid, total: Grid) -> int:
    """How many pairs of codes of two tensors have a sum that is as near to one code of the total as to the next."""
    places = (first.values[:, None] + second.values[None]) / total.scale + total.zero_point
    inside = places[(places > total.low) & (places < total.high)]
    return int((np.abs(inside - np.floor(inside) - 0.5) < NEAR).sum())


def clear_step(first: Grid, second: Grid, total: Grid) -> float:
    """The step of the total nearest to what it is for which no pair of codes is near a tie.

    Answers a float32, at most a part in 1,000 away; where every step has such pairs, that with the fewest, and the
    step as it is where a tensor has more than 256 codes.
    """
    if max(one.high - one.low for one in (first, second, total)) >= WIDEST:
        return total.scale
    fewest, best = None, total.scale
    for stride in sorted(range(-STRIDES, STRIDES + 1), key=abs):
        scale = float(np.float32(total.scale * (1 + stride * STRIDE)))
        found = near_ties(first, second, replace(total, scale=scale))
        if fewest is None or found < fewest:
            fewest, best = found, scale
        if not found:
            break
    return best
