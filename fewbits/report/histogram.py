"""Counts one layer's weights before and after into the same bins."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fewbits.errors import InputError
from fewbits.report.record import Histogram


def histogram(layer: str, before: ArrayLike, after: ArrayLike, why: str, bins: int = 120) -> Histogram:
    """The Histogram of a layer's weights.

    Args:
        layer: the layer's name.
        before: the weights in float, any shape.
        after: the weights as the written file holds them, dequantized; the same shape.
        why: why this layer is shown.
        bins: number of bins of equal width over the range of both.

    Raises:
        InputError: the shapes differ, or there is nothing to count.
    """
    old, new = (np.asarray(values, dtype=np.float64) for values in (before, after))
    if old.shape != new.shape or old.size == 0:
        raise InputError(
            f"{layer}: weights before have shape {old.shape} and after {new.shape}; "
            "a histogram needs the same shape with at least one element"
        )
    low = float(min(old.min(), new.min()))
    high = float(max(old.max(), new.max()))
    edges = np.histogram_bin_edges([low, high], bins=bins)
    counts = [np.histogram(values, bins=edges)[0] for values in (old, new)]
    return Histogram(
        layer=layer,
        why=why,
        edges=tuple(edges.tolist()),
        before=tuple(counts[0].tolist()),
        after=tuple(counts[1].tolist()),
    )
