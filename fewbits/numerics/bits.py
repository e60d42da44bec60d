"""A number as each float format holds it, bit by bit."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch

from fewbits.numerics.floats import decode_float, encode_float
from fewbits.numerics.qtype import FloatFormat, table


@dataclass(frozen=True, slots=True)
class NumberBits:
    """One number in one format.

    ``sign``, ``exponent`` and ``mantissa`` are the fields as strings of 0 and 1, empty where the format has
    no such field, and ``code`` the whole pattern as an integer. ``value`` is what the pattern stands for, and
    ``error`` is ``value`` less the number.
    """

    qtype: str
    sign: str
    exponent: str
    mantissa: str
    code: int
    value: float
    error: float


def bits_of(number: float, *, saturate: bool = False) -> list[NumberBits]:
    """The number in float32 and in every plain float row of the table, e8m0 included.

    ``saturate`` as in ``cast``: False follows the format to infinity or NaN. A float32 that overflows is
    infinite.
    """
    wide = torch.tensor(number, dtype=torch.float64)
    single = wide.float()
    (code,) = struct.unpack("<I", struct.pack("<f", float(single)))
    records = [_record("fp32", FloatFormat(8, 23, 127, "ieee"), 32, code, float(single), number)]
    for row in table():
        if row.float_format is None or row.group_size is not None:
            continue
        code = int(encode_float(wide, row, saturate=saturate))
        value = float(decode_float(torch.tensor(code), row))
        records.append(_record(row.name, row.float_format, row.bits, code, value, number))
    return records


def _record(name: str, fmt: FloatFormat, bits: int, code: int, value: float, number: float) -> NumberBits:
    pattern = f"{code:0{bits}b}"
    sign = int(fmt.signed)
    exponent = sign + fmt.exponent_bits
    return NumberBits(
        name, pattern[:sign], pattern[sign:exponent], pattern[exponent:], code, value, value - number
    )
