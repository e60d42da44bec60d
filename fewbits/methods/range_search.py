"""Find the clipping range of an activation from its histogram.

Every function takes a :class:`~fewbits.planning.stats.Histogram` and gives ``(low, high)`` with
``low <= 0 <= high``, so that zero (padding, ReLU) is exact in every range.
Source, but where a function names its own: Nagel et al. 2021, "A White Paper on Neural Network Quantization"
(arXiv:2106.08295), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fewbits.errors import InputError
from fewbits.planning.scheme import RangeKind
from fewbits.planning.stats import Histogram

PERCENTILE = 99.99  # of the values are inside


def search(kind: RangeKind, histogram: Histogram, levels: int) -> tuple[float, float]:
    """The range of that kind for a format with ``levels`` codes (256 for 8 bits).

    Raises:
        InputError: a kind that is for weights alone.
    """
    match kind:
        case "minmax":
            return minmax(histogram)
        case "percentile":
            return percentile(histogram)
        case "entropy":
            return entropy(histogram, levels)
        case "mse":
            return mse(histogram, levels)
        case "half_quadratic":
            raise InputError("range 'half_quadratic' is for weights; activations have 'mse'")


def minmax(histogram: Histogram) -> tuple[float, float]:
    """The observed extremes."""
    return min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)


def percentile(histogram: Histogram, inside: float = PERCENTILE) -> tuple[float, float]:
    """The narrowest range that leaves out at most half of ``100 - inside`` percent on each side.

    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference" (arXiv:2004.09602), on calibration.
    """
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (100 - inside) / 200
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    low = edges[np.searchsorted(share, tail, side="right")]
    high = edges[min(int(np.searchsorted(share, 1 - tail)) + 1, len(edges) - 1)]
    bottom, top = minmax(histogram)
    return max(min(float(low), 0.0), bottom), min(max(float(high), 0.0), top)


def mse(histogram: Histogram, levels: int) -> tuple[float, float]:
    """The range with the least squared error of rounding and clipping, by alternating line searches.

    Source: Nagel et al. 2021, section 3.1, "mean squared error".
    """
    return _shrink(histogram, lambda low, high: squared_error(histogram, low, high, levels))


def entropy(histogram: Histogram, levels: int) -> tuple[float, float]:
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the observed one.

    Source: Migacz 2017, "8-bit Inference with TensorRT", here with both ends free.
    """
    return _shrink(histogram, lambda low, high: _divergence(histogram, low, high, levels))


def squared_error(histogram: Histogram, low: float, high: float, levels: int) -> float:
    """Mean squared error of values quantized to ``levels`` steps between ``low`` and ``high`` (zero exact)."""
    step = (high - low) / (levels - 1)
    if step <= 0:
        return float(np.average(histogram.centers**2, weights=histogram.counts))
    zero = np.round(-low / step)
    centers = histogram.centers
    codes = np.clip(np.round(centers / step) + zero, 0, levels - 1)
    width = (histogram.high - histogram.low) / len(histogram.counts)
    # A bin wider than a step would hide the rounding inside it: count at least what is lost on average.
    error = np.maximum((centers - (codes - zero) * step) ** 2, min(width, step) ** 2 / 12)
    return float(np.average(error, weights=histogram.counts))


def _divergence(histogram: Histogram, low: float, high: float, levels: int) -> float:
    step = (high - low) / (levels - 1)
    if step <= 0:
        return np.inf
    codes = np.clip(np.round((histogram.centers - low) / step), 0, levels - 1).astype(int)
    counts = histogram.counts
    # Each code's mass is spread evenly over the occupied bins that round to it. Mass clipped at an end
    # piles up in the outermost bin inside the range, where the reference does not have it.
    occupied = counts > 0
    mass = np.bincount(codes, weights=counts, minlength=levels)
    inside = occupied & (histogram.centers >= low - step / 2) & (histogram.centers <= high + step / 2)
    spread = np.bincount(codes[inside], minlength=levels)
    expected = np.where(inside, mass[codes] / np.maximum(spread[codes], 1), 0.0)
    if not expected.any():
        return np.inf
    p = counts / counts.sum()
    q = np.where(expected > 0, expected / expected.sum(), 1e-9)
    return float(np.sum(np.where(occupied, p * np.log(np.where(occupied, p, 1.0) / q), 0.0)))


def _shrink(histogram: Histogram, cost: Callable[[float, float], float]) -> tuple[float, float]:
    """Minimize over both ends in turn, each between an eighth of the observed extreme and all of it."""
    low, high = minmax(histogram)
    fractions = np.linspace(0.125, 1.0, 141)
    for _ in range(3):
        before = (low, high)
        bottom, top = minmax(histogram)
        if top > 0:
            high = min((top * f for f in fractions), key=lambda candidate: cost(low, candidate))
        if bottom < 0:
            low = min((bottom * f for f in fractions), key=lambda candidate: cost(candidate, high))
        if (low, high) == before:
            break
    return float(low), float(high)
