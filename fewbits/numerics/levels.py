"""Rows whose levels are a known list times a scale: narrow floats and fixed codebooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.affine import LARGEST_VALUE, SMALLEST_SCALE, nonzero
from fewbits.numerics.codebook import Nearest
from fewbits.numerics.floats import decode_float, encode_float, format_of, scale_row, stored_scale
from fewbits.numerics.qtype import QType
from fewbits.numerics.rows import Points, Rows
from fewbits.numerics.steps import best_step, better, misfit, times


def encode_levels(values: Tensor, row: QType) -> Tensor:
    """Codes of the levels nearest to ``values`` (float32, already divided by the scale); floats saturate."""
    if row.kind == "float":
        # As with the zero point that ONNX adds, minus zero becomes zero; it cannot be told after scaling.
        return encode_float(values + 0.0, row, saturate=True)
    return _nearest(row, values.device).codes(values)


def decode_levels(codes: Tensor, row: QType) -> Tensor:
    """The float32 levels that codes stand for, before the scale."""
    if row.kind == "float":
        return decode_float(codes, row)
    # Several times as fast as an index
    return _levels(row, codes.device).index_select(0, codes.reshape(-1).int()).view(codes.shape)


@lru_cache(maxsize=64)
def _levels(row: QType, device: torch.device) -> Tensor:
    return torch.tensor(row.levels, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _nearest(row: QType, device: torch.device) -> Nearest:
    return Nearest(_levels(row, device))


# Narrow floats have as good a scale in every octave, often above the spanning one: all of one is looked through.
_COARSE, _FINE = tuple(0.92**k for k in range(-2, 18) if k), (0.97, 1.03)

ScaleRule = Callable[[Rows], Tensor]  # the scale of each row, (channels, groups, 1) float32


def spanning_rule(row: QType, tensor_scale: Tensor | None) -> ScaleRule:
    """The scale at which the outermost levels reach the ends of a row; 1 for a row of zeros."""
    return lambda rows: _stored(_spanning(rows, row), row, tensor_scale)


def least_error_rule(row: QType, tensor_scale: Tensor | None) -> ScaleRule:
    """The scale of least squared error; where scales are stored in few bits, the best of those near by."""

    def nearest(values: Tensor) -> Tensor:
        return decode_levels(encode_levels(values, row), row)

    # Of the powers of two few are worth trying.
    factors = (2.0, 0.5, 0.25) if row.scale_type == "e8m0" else tuple(0.94**k for k in range(-3, 26) if k)

    def rule(rows: Rows) -> Tensor:
        spanning = _spanning(rows, row)
        scale = _stored(spanning, row, tensor_scale)
        points = Points(rows.points.values / scale, rows.points.weights)
        if row.scale_type is None:
            step = best_step(points, nearest, _COARSE, _FINE, refinements=2)
            return times(scale, step, _reach(row))
        best = (-misfit(points, torch.ones_like(scale), nearest), scale)
        for factor in factors:
            candidate = _stored(times(spanning, factor, _reach(row)), row, tensor_scale)
            best = better(best, (-misfit(points, candidate / scale, nearest), candidate))
        return best[1]

    return rule


def _spanning(rows: Rows, row: QType) -> Tensor:
    low, high = rows.ends
    bottom, top = reach(row)
    scale = torch.maximum(high / top, low / bottom).clamp(max=LARGEST_VALUE / _reach(row))
    return nonzero(scale, low.clamp(max=0), high.clamp(min=0))


def _reach(row: QType) -> float:
    bottom, top = reach(row)
    return max(top, -bottom, 1.0)


def _stored(scale: Tensor, row: QType, tensor_scale: Tensor | None) -> Tensor:
    return power_of_two_below(scale) if row.scale_type == "e8m0" else stored_scale(scale, row, tensor_scale)


def tensor_scale_of(largest: Tensor, row: QType) -> Tensor:
    """The second-level scale, float32, with which a row's largest scale and level reach ``largest``."""
    top = format_of(scale_row(row)).max_value * reach(row)[1]
    return nonzero(largest / top, -largest, largest)


def reach(row: QType) -> tuple[float, float]:
    """The levels that the ends of a row are mapped to.

    The outermost levels, save with a power-of-two scale, which is rounded down. MX 1.0 (section 6.3) aligns
    the powers of two, so that the largest magnitudes saturate. The log rows round to nearest, 3/4 and above
    going up (INQ, arXiv:1702.03044, equation 6).
    Raises InputError for a float without negative numbers, which holds scales.
    """
    if row.levels is not None:
        share = 0.75 if row.scale_type == "e8m0" else 1.0
        return row.levels[0] * share, row.levels[-1] * share
    fmt = format_of(row)
    if not fmt.signed:
        raise InputError(f"{row.name} holds scales and has no negative numbers; cast to it instead")
    top = fmt.max_value
    if row.scale_type == "e8m0":
        top = 2.0 ** math.floor(math.log2(top))
    return -top, top


def power_of_two_below(scale: Tensor) -> Tensor:
    """The largest power of two not above each positive float32, at least the smallest normal number."""
    bits = scale.clamp(min=SMALLEST_SCALE).contiguous().view(torch.int32) & 0x7F800000
    return bits.view(torch.float32).clamp_(max=2.0**127)
