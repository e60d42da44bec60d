"""How far two arrays that should be the same are from each other."""

from __future__ import annotations

import numpy as np

SAME = 1e-3  # relative distance (60 dB) of two ways to compute the same in float32


def distance(expected: np.ndarray, got: np.ndarray) -> str | None:
    """How far two outputs are from each other, in words; None where they are the same but for rounding."""
    if expected.shape != got.shape:
        return f"its shape is {list(got.shape)}, and not {list(expected.shape)}"
    if expected.dtype.kind != "f":
        differ = int((expected != got).sum())
        return f"{differ} of {expected.size} values differ" if differ else None
    a, b = expected.astype(np.float64), got.astype(np.float64)
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not np.isfinite(a[differ]).all() or not np.isfinite(b[differ]).all():
        return "NaN or infinite in one of the two"
    length = float(np.linalg.norm(a[np.isfinite(a)]))
    distance = float(np.linalg.norm(b[differ] - a[differ]))
    if distance <= SAME * max(length, 1e-6):
        return None
    largest = float(np.abs(b[differ] - a[differ]).max())
    return f"relative distance {distance / max(length, 1e-30):.2g}, largest difference {largest:.2g}"
