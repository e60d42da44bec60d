"""Symmetric 4-bit groups in bfloat16, compiled: a pass over each group where tensors take one for every operation.

The rules are those of :mod:`fewbits.numerics` (``LikelyRanges``, ``encode_affine``, ``pack``), by the same arithmetic
in float32; only sums are added up in another order. numba compiles at the first call and keeps what it compiled.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from fewbits.numerics.affine import LARGEST_VALUE, SMALLEST_SCALE

QMAX = 7  # codes mirror around zero, the lowest one is left out
_F = np.float32
_TINY, _LARGEST = _F(SMALLEST_SCALE), _F(LARGEST_VALUE)
_SUMS = {"reassoc", "nsz"}  # sums may be added up in any order: by vectors


def steps(values: Tensor, shares: Tensor) -> Tensor:
    """The step of least squared error of each group, among those that shares of its range lead to.

    Args:
        values: bfloat16 [groups, length].
        shares: float32, of the range; the first is 1. Without any, the step is that of the whole range.

    Returns:
        float32 [groups, 1]; infinity where a group holds NaN or infinity.
    """
    found = torch.empty(len(values), 1)
    _steps(_words(values), shares.numpy(), found.numpy())
    return found


def packed(values: Tensor, scale: Tensor) -> Tensor:
    """Codes at given scales, two in a byte, the first in the low nibble, the lowest signed one as zero.

    Args:
        values: bfloat16 [groups, length], of an even length.
        scale: float32 [groups, 1].

    Returns:
        uint8 [groups, length / 2].
    """
    groups, length = values.shape
    found = torch.empty(groups, length // 2, dtype=torch.uint8)
    _packed(_words(values), scale.numpy(), found.numpy())
    return found


def energies(values: Tensor, packed: Tensor, scale: Tensor) -> tuple[float, float]:
    """Sums of squares: of the values, and of what they lose as packed codes brought back to bfloat16.

    Args:
        values: bfloat16 [groups, length].
        packed: as :func:`packed` gives them.
        scale: float32 [groups, 1].
    """
    signal, noise = _energies(_words(values), packed.numpy(), scale.numpy())
    return float(signal), float(noise)


def _words(values: Tensor) -> np.ndarray:
    words: np.ndarray = values.view(torch.int16).numpy().view(np.uint16)
    return words


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def _steps(values, shares, found):  # type: ignore[no-untyped-def]
    groups, length = values.shape
    wide = np.empty(length, np.uint32)
    scaled = np.empty(length, np.float32)
    for group in range(groups):
        largest, differing = np.uint32(0), np.uint32(0)
        first = np.uint32(values[group, 0])
        for i in range(length):
            word = np.uint32(values[group, i])
            wide[i] = word << np.uint32(16)
            largest = max(largest, word & np.uint32(0x7FFF))
            differing |= word ^ first
        if largest >= np.uint32(0x7F80):
            found[group, 0] = np.inf
            continue
        wide_largest = np.empty(1, np.uint32)
        wide_largest[0] = largest << np.uint32(16)
        end = wide_largest.view(np.float32)[0]
        unit = _F(1)
        if end > 0:
            unit = max(end if differing == 0 else end / _F(QMAX), _TINY)
        numbers = wide.view(np.float32)
        for i in range(length):
            scaled[i] = numbers[i] / unit
        best, step = _F(-1), _F(1)
        for share in shares:
            inner, power = _F(0), _F(0)
            for i in range(length):
                level = min(max(np.rint(scaled[i] / share), _F(-QMAX)), _F(QMAX))
                inner += scaled[i] * level
                power += level * level
            fitted = inner / power if power > 0 else _F(1)
            if inner * fitted > best:
                best, step = inner * fitted, fitted
        scale = unit * step
        found[group, 0] = max(scale if scale * _F(2 * QMAX) <= _LARGEST else unit, _TINY)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _packed(values, scale, found):  # type: ignore[no-untyped-def]
    groups, length = values.shape
    wide = np.empty(length, np.uint32)
    fields = np.empty(length, np.uint8)
    for group in range(groups):
        step = scale[group, 0]
        for i in range(length):
            wide[i] = np.uint32(values[group, i]) << np.uint32(16)
        numbers = wide.view(np.float32)
        for i in range(length):
            level = min(max(np.rint(numbers[i] / step), _F(-QMAX)), _F(QMAX))
            fields[i] = np.uint8(np.int32(level) + np.int32(QMAX + 1))
        for i in range(length // 2):
            found[group, i] = fields[2 * i] | (fields[2 * i + 1] << np.uint8(4))


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_SUMS)
def _energies(values, packed, scale):  # type: ignore[no-untyped-def]
    groups, length = values.shape
    wide = np.empty(length, np.uint32)
    again = np.empty(length, np.float32)
    signal, noise = 0.0, 0.0
    for group in range(groups):
        step = scale[group, 0]
        for i in range(length):
            wide[i] = np.uint32(values[group, i]) << np.uint32(16)
        numbers = wide.view(np.float32)
        for i in range(length // 2):
            byte = np.int32(packed[group, i])
            again[2 * i] = _F((byte & 15) - (QMAX + 1)) * step
            again[2 * i + 1] = _F((byte >> 4) - (QMAX + 1)) * step
        words = again.view(np.uint32)
        for i in range(length):  # to bfloat16: to nearest, ties to even
            words[i] = (
                words[i] + np.uint32(0x7FFF) + ((words[i] >> np.uint32(16)) & np.uint32(1))
            ) & np.uint32(0xFFFF0000)
        kept, lost = _F(0), _F(0)
        for i in range(length):
            difference = again[i] - numbers[i]
            kept += numbers[i] * numbers[i]
            lost += difference * difference
        signal += kept
        noise += lost
    return signal, noise
