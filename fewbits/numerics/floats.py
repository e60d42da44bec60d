"""Narrow floats: encode and decode bit patterns, for every row that a FloatFormat describes.

Rounding is to nearest, ties to even, unless asked otherwise. What lies beyond the largest finite value after
rounding either saturates (ONNX Cast with ``saturate=1``; infinities too) or follows the format (IEEE 754 and
ml_dtypes): it becomes an infinity where there is one and NaN where there is not. A format without NaN (fp4)
always saturates.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.qtype import FloatFormat, QType, find

Rounding = Literal["nearest", "up", "down"]
_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16}  # which torch converts in one pass
_ROUND = {"nearest": torch.round, "up": torch.ceil, "down": torch.floor}


def format_of(row: QType) -> FloatFormat:
    """The float format of a row; raises InputError for a row of another kind."""
    if row.float_format is None:
        raise InputError(f"qtype {row.name!r} is of kind {row.kind!r}; a float row is needed")
    return row.float_format


def encode_float(values: Tensor, row: QType, *, saturate: bool, rounding: Rounding = "nearest") -> Tensor:
    """Bit patterns of ``values`` (any shape, float16 to float64) in the row's code dtype.

    ``rounding`` is of the magnitude: to nearest with ties to even, or up or down.
    NaN becomes the format's NaN, with its sign where the format keeps one. A format without NaN turns it into
    a zero of the other sign, as ONNX and ml_dtypes do.
    """
    fmt = format_of(row)
    if rounding not in _ROUND:
        raise InputError(f"unknown rounding {rounding!r}; known are {', '.join(_ROUND)}")
    by_table = (
        row.bits <= 8 and fmt.mantissa_bits <= 6 and rounding == "nearest" and values.dtype == torch.float32
    )
    if by_table and values.numel() >= 1 << 17:  # a table of as many cases pays for itself
        return _encode_by_table(values, row, saturate)
    wide = values.double()
    magnitude = wide.abs()
    # The power of two at or below each value, its exponent bits alone; the mantissa's unit is that much less.
    exponent = (magnitude.view(torch.int64) >> 52) - 1023
    exponent.clamp_(min=fmt.min_exponent, max=1023)
    unit = ((exponent + (1023 - fmt.mantissa_bits)) << 52).view(torch.float64)
    steps = _ROUND[rounding](torch.nan_to_num(magnitude / unit, nan=0.0, posinf=0.0)).long()
    # Subnormals and the first binade count from zero; each later binade starts where the one before ends.
    code = ((exponent - fmt.min_exponent) << fmt.mantissa_bits) + steps
    if fmt.specials == "e8m0":
        code = (code - 1).clamp_(min=0)
    overflow = (code > fmt.max_code) | magnitude.isinf()
    code = torch.where(overflow, fmt.max_code if saturate else _overflow_code(fmt), code)
    return _with_sign(code, wide, fmt).to(row.code_dtype)


def _encode_by_table(values: Tensor, row: QType, saturate: bool) -> Tensor:
    """By the upper 16 bits of each float32 and whether the lower ones are all zero.

    With at most 6 bits of mantissa every halfway point ends within the upper 16 bits, so what follows them
    matters only by being there.
    """
    bits = values.reshape(-1).view(torch.int32)
    case = ((bits >> 15) & 0x1FFFE) | ((bits & 0xFFFF) != 0)
    return _cases(row, saturate, values.device).index_select(0, case).view(values.shape)


@lru_cache(maxsize=64)
def _cases(row: QType, saturate: bool, device: torch.device) -> Tensor:
    """The code of every case, (2 ** 17,), worked out half at a time by the rule itself."""
    upper = torch.arange(1 << 16, dtype=torch.int32, device=device) << 16
    halves = [
        encode_float(bits.view(torch.float32), row, saturate=saturate) for bits in (upper, upper | 0x8000)
    ]
    return torch.stack(halves, dim=1).view(-1)


def _with_sign(code: Tensor, wide: Tensor, fmt: FloatFormat) -> Tensor:
    if fmt.specials == "e8m0":
        return torch.where((wide < 0) | wide.isnan(), 255, code)
    negative = torch.signbit(wide)
    sign_bit = 1 << (fmt.exponent_bits + fmt.mantissa_bits)
    if fmt.specials == "fnuz":
        # There is no minus zero: its pattern is the one NaN, which overflow shares.
        signed = torch.where(negative & (code > 0), code | sign_bit, code & (sign_bit - 1))
        signed = torch.where(code == sign_bit, sign_bit, signed)
        return torch.where(wide.isnan(), sign_bit, signed)
    if fmt.specials == "none":
        code = code.masked_fill(wide.isnan(), 0)
        negative ^= wide.isnan()
    else:
        code = torch.where(wide.isnan(), _nan_code(fmt), code)
    return torch.where(negative, code | sign_bit, code)


def _nan_code(fmt: FloatFormat) -> int:
    """The magnitude code of the format's quiet NaN; the largest value where there is none."""
    top = (1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1
    match fmt.specials:
        case "ieee":
            return fmt.max_code + 1 + (1 << (fmt.mantissa_bits - 1))
        case "fn":
            return top
        case "fnuz":
            return top + 1
        case "e8m0":
            return top
        case _:
            return fmt.max_code


def _overflow_code(fmt: FloatFormat) -> int:
    return fmt.max_code + 1 if fmt.specials == "ieee" else _nan_code(fmt)


def decode_float(codes: Tensor, row: QType) -> Tensor:
    """The float32 values of bit patterns, exactly."""
    table = _table(row, codes.device)
    return table[codes.int()]


@lru_cache(maxsize=64)
def _table(row: QType, device: torch.device) -> Tensor:
    """The value of every bit pattern of a row, (2 ** bits,) float32."""
    fmt = format_of(row)
    code = torch.arange(1 << row.bits, dtype=torch.int64)
    magnitude = code & ((1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1)
    field = magnitude >> fmt.mantissa_bits
    fraction = (magnitude & ((1 << fmt.mantissa_bits) - 1)).double() / (1 << fmt.mantissa_bits)
    if fmt.specials == "e8m0":
        value = torch.ldexp(torch.ones_like(fraction), field + fmt.min_exponent)
    else:
        implicit = (field > 0).double()
        value = torch.ldexp(implicit + fraction, field.clamp(min=1) - 1 + fmt.min_exponent)
    return _with_specials(value, code, magnitude, fmt).float().to(device)


def _with_specials(value: Tensor, code: Tensor, magnitude: Tensor, fmt: FloatFormat) -> Tensor:
    if fmt.specials == "e8m0":
        return torch.where(code == 255, torch.nan, value)
    sign_bit = 1 << (fmt.exponent_bits + fmt.mantissa_bits)
    if fmt.specials == "fnuz":
        return torch.where(code == sign_bit, -torch.nan, torch.where(code > sign_bit, -value, value))
    value = torch.where(magnitude > fmt.max_code, torch.nan, value)
    if fmt.specials == "ieee":
        value = torch.where(magnitude == fmt.max_code + 1, torch.inf, value)
    return torch.where(code >= sign_bit, -value, value)


def scale_row(row: QType) -> QType:
    """The float row in which a row with a scale type stores its scales."""
    assert row.scale_type is not None, row.name
    return find(row.scale_type)


def encode_scale(scale: Tensor, row: QType, tensor_scale: Tensor | None) -> Tensor:
    """Bit patterns of a row's scales in its scale type, never that of zero."""
    stored_in = scale_row(row)
    relative = scale if tensor_scale is None else scale / tensor_scale
    codes = encode_float(relative, stored_in, saturate=True)
    return codes if not format_of(stored_in).signed else codes.int().clamp_(min=1).to(codes.dtype)


def decode_scale(codes: Tensor, row: QType, tensor_scale: Tensor | None) -> Tensor:
    """The steps that ``encode_scale`` wrote."""
    scale = decode_float(codes, scale_row(row))
    return scale if tensor_scale is None else scale * tensor_scale


def stored_scale(scale: Tensor, row: QType, tensor_scale: Tensor | None = None) -> Tensor:
    """A positive scale as the row's scale type holds it: rounded to nearest, never zero."""
    if row.scale_type is None:
        return scale
    dtype = _TORCH.get(row.scale_type)
    if dtype is not None and tensor_scale is None:
        info = torch.finfo(dtype)
        return scale.to(dtype).float().clamp_(min=info.tiny * info.eps, max=info.max)
    return decode_scale(encode_scale(scale, row, tensor_scale), row, tensor_scale)
