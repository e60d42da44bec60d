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
from fewbits.numerics.floats import decode_float, encode_float, format_of, stored_scale
from fewbits.numerics.qtype import QType, find
from fewbits.numerics.sample import Points, Sample


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
    return _levels(row, codes.device)[codes.int()]


@lru_cache(maxsize=64)
def _levels(row: QType, device: torch.device) -> Tensor:
    return torch.tensor(row.levels, dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _nearest(row: QType, device: torch.device) -> Nearest:
    return Nearest(_levels(row, device))


ScaleRule = Callable[[Sample], Tensor]  # the scale of each row, (channels, groups, 1) float32


def spanning_rule(row: QType, tensor_scale: Tensor | None) -> ScaleRule:
    """The scale at which the outermost levels reach the ends of a row; 1 for a row of zeros."""
    _require_signed(row)
    return lambda sample: _stored(_spanning(sample, row), row, tensor_scale)


def least_error_rule(row: QType, tensor_scale: Tensor | None) -> ScaleRule:
    """The scale of least squared error among multiples of the spanning one, then fitted by least squares."""
    _require_signed(row)
    # A power of two has few neighbours worth trying.
    factors = (2.0, 0.5, 0.25) if row.scale_type == "e8m0" else tuple(0.94**k for k in range(-3, 26) if k)

    def rule(sample: Sample) -> Tensor:
        wanted = _spanning(sample, row)
        best = unit = _stored(wanted, row, tensor_scale)
        points = Points(sample.points.values / unit, sample.points.weights)
        least, fitted = _misfit(points, torch.ones_like(unit), row)
        for factor in factors:
            candidate = _stored(wanted * factor, row, tensor_scale)
            error, fit = _misfit(points, candidate / unit, row)
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, candidate, best)
            fitted = torch.where(better, fit, fitted)
        candidate = _stored(unit * fitted, row, tensor_scale)
        error, _ = _misfit(points, candidate / unit, row)
        return torch.where(error < least, candidate, best)

    return rule


def _misfit(points: Points, scale: Tensor, row: QType) -> tuple[Tensor, Tensor]:
    """The squared error at a scale, and the scale that fits its codes best."""
    level = decode_levels(encode_levels(points.values / scale, row), row)
    inner = points.total(points.values * level)
    power = points.total(level.square())
    error = points.total(level.mul_(scale).sub_(points.values).square_())
    return error, torch.where(power > 0, inner / power, scale)


def _spanning(sample: Sample, row: QType) -> Tensor:
    low, high = sample.ends
    bottom, top = reach(row)
    scale = torch.maximum(high / top, low / bottom).clamp(max=LARGEST_VALUE / max(top, -bottom, 1.0))
    return nonzero(scale, low.clamp(max=0), high.clamp(min=0))


def _stored(scale: Tensor, row: QType, tensor_scale: Tensor | None) -> Tensor:
    return power_of_two_below(scale) if row.scale_type == "e8m0" else stored_scale(scale, row, tensor_scale)


def _require_signed(row: QType) -> None:
    if row.kind == "float" and not format_of(row).signed:
        raise InputError(f"{row.name} holds scales and has no negative numbers; cast to it instead")


def largest_step(row: QType) -> float:
    """What a two-level row reaches at tensor scale 1: its largest scale times its largest level."""
    return format_of(find(row.scale_type or "")).max_value * reach(row)[1]


def reach(row: QType) -> tuple[float, float]:
    """The levels that the ends of a row are mapped to.

    The outermost levels, save with a power-of-two scale, which is rounded down. MX 1.0 (section 6.3) aligns
    the powers of two, so that the largest magnitudes saturate. The log rows round to nearest, 3/4 and above
    going up (INQ, arXiv:1702.03044, equation 6).
    """
    if row.levels is not None:
        share = 0.75 if row.scale_type == "e8m0" else 1.0
        return row.levels[0] * share, row.levels[-1] * share
    top = format_of(row).max_value
    if row.scale_type == "e8m0":
        top = 2.0 ** math.floor(math.log2(top))
    return -top, top


def power_of_two_below(scale: Tensor) -> Tensor:
    """The largest power of two not above each positive float32, at least the smallest normal number."""
    bits = scale.clamp(min=SMALLEST_SCALE).contiguous().view(torch.int32) & 0x7F800000
    return bits.view(torch.float32).clamp_(max=2.0**127)
