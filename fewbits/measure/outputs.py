"""Arithmetic on the outputs of two models for the same samples, where values may be NaN or infinite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def largest(output: np.ndarray) -> np.ndarray:
    """The place of the largest entry of every row, int64 [rows]; none, -1, in a row with NaN."""
    return np.where(np.isnan(output).any(axis=1), -1, output.argmax(axis=1))


def floats(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Those of a float dtype, or all where none is, as float64."""
    chosen = [array for array in arrays if array.dtype.kind == "f"] or list(arrays)
    return [array.astype(np.float64) for array in chosen]


def energy(arrays: Sequence[np.ndarray]) -> float:
    """Sum of squares of what is finite: scores of what is masked may be minus infinity."""
    return sum(float(np.square(array[np.isfinite(array)]).sum()) for array in floats(arrays))


def difference(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """Energy of the difference; infinite where one of two values that are not equal is NaN or infinite."""
    noise = 0.0
    for a, b in zip(floats(expected), floats(got), strict=True):
        differ = a != b
        if not (np.isfinite(a[differ]).all() and np.isfinite(b[differ]).all()):
            return float("inf")
        noise += float(np.square(b[differ] - a[differ]).sum())
    return noise


def cosines(expected: Sequence[np.ndarray], got: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Cosine per sample, float64 [size]; one number for all where an output has no axis of ``size`` samples first."""
    a, b = floats(expected), floats(got)
    rows = size if all(array.ndim and len(array) == size and array.size > size for array in a) else 1
    left = np.concatenate([array.reshape(rows, -1) for array in a], axis=1)
    right = np.concatenate([array.reshape(rows, -1) for array in b], axis=1)
    equal = (left == right).all(axis=1)
    with np.errstate(invalid="ignore"):  # NaN and infinite values give NaN
        length = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosine = np.where(equal, 1.0, (left * right).sum(axis=1) / np.where(length > 0, length, 1.0))
    return np.nan_to_num(cosine, nan=-1.0)


def decibel(signal: float, noise: float) -> float:
    """Of a ratio of energies; infinite without noise, and minus infinite where it is."""
    if noise in (0.0, np.inf):
        return float("inf") if noise == 0 else float("-inf")
    return float(10 * np.log10(max(signal, 1e-30) / noise))
