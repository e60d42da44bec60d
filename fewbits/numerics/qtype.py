"""The table of number formats: a format is a row, and a new one is registered, not programmed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch

from fewbits.errors import InputError

Kind = Literal["int", "float", "codebook", "binary", "ternary"]
Specials = Literal["ieee", "fn", "fnuz", "none", "e8m0"]


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """How the bits of a narrow float are read.

    ``specials`` names what the top codes mean: ``ieee`` has infinities and NaNs in the top exponent,
    ``fn`` has one NaN per sign (all ones) and no infinity, ``fnuz`` has its only NaN where minus zero would
    be, ``none`` has finite values only, and ``e8m0`` is the unsigned power of two of the OCP MX
    specification, with neither sign nor zero and NaN at 255.
    Sources: IEEE 754-2019; OCP OFP8 1.0; OCP Microscaling (MX) 1.0; arXiv:2206.02915 for fnuz.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials

    def __post_init__(self) -> None:
        if self.specials not in get_args(Specials):
            raise InputError(f"specials {self.specials!r}; known are {', '.join(get_args(Specials))}")
        if not (1 <= self.exponent_bits <= 8 and 0 <= self.mantissa_bits <= 23):
            raise InputError(
                f"a float of {self.exponent_bits} exponent and {self.mantissa_bits} mantissa bits; "
                f"1 to 8 and 0 to 23 are supported"
            )
        if self.specials == "ieee" and self.mantissa_bits == 0:
            raise InputError("an ieee float needs a mantissa bit to tell NaN from infinity")

    @property
    def signed(self) -> bool:
        """Whether the format has a sign bit; only ``e8m0`` has none."""
        return self.specials != "e8m0"

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, which subnormals share."""
        return -self.bias if self.specials == "e8m0" else 1 - self.bias

    @property
    def max_code(self) -> int:
        """The magnitude code (sign bit removed) of the largest finite value."""
        top = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        match self.specials:
            case "ieee":
                return top - (1 << self.mantissa_bits)
            case "fn" | "e8m0":
                return top - 1
            case _:
                return top

    @property
    def max_value(self) -> float:
        """The largest finite value."""
        exponent = (self.max_code >> self.mantissa_bits) + self.min_exponent - int(self.signed)
        fraction = (self.max_code & ((1 << self.mantissa_bits) - 1)) / (1 << self.mantissa_bits)
        return float((1 + fraction) * 2.0**exponent)


@dataclass(frozen=True, slots=True)
class QType:
    """One row of the table.

    ``bits`` is the width of one packed code; ``qmin`` and ``qmax`` bound the unpacked codes.
    ``float_format`` is set for kind ``float``. ``levels`` (ascending) is set for a codebook known in
    advance and None for a learned one. A block format fixes its own ``group_size``. ``scale_type`` names
    the float row in which scales are stored; None is float32. ``tensor_scale`` says that a second, float32
    scale of the whole tensor multiplies those.
    """

    name: str
    kind: Kind
    bits: int
    qmin: int
    qmax: int
    float_format: FloatFormat | None = None
    levels: tuple[float, ...] | None = None
    group_size: int | None = None
    scale_type: str | None = None
    tensor_scale: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(
                f"qtype {self.name!r}: kind {self.kind!r}; known are {', '.join(get_args(Kind))}"
            )
        if not 1 <= self.bits <= 16:
            raise InputError(f"qtype {self.name!r}: bits is {self.bits}; codes have 1 to 16 bits")
        if self.qmin >= self.qmax:
            raise InputError(f"qtype {self.name!r}: qmin {self.qmin} is not below qmax {self.qmax}")
        # Binary codes are -1 and +1: two values in one bit, though their distance is 2.
        span = 1 if self.kind == "binary" else self.qmax - self.qmin
        if span >= 1 << self.bits:
            raise InputError(
                f"qtype {self.name!r}: codes from {self.qmin} to {self.qmax} do not fit {self.bits} bits"
            )
        if (self.kind == "float") != (self.float_format is not None):
            raise InputError(f"qtype {self.name!r}: kind 'float' and float_format go together")
        if self.float_format is not None:
            f = self.float_format
            width = int(f.signed) + f.exponent_bits + f.mantissa_bits
            if width != self.bits:
                raise InputError(
                    f"qtype {self.name!r}: its fields have {width} bits, the row says {self.bits}"
                )
        if self.levels is not None:
            _check_levels(self)

    @property
    def signed(self) -> bool:
        """Whether codes can be negative."""
        return self.qmin < 0

    @property
    def code_dtype(self) -> torch.dtype:
        """The torch dtype of unpacked codes: the narrowest of int8, uint8, int16, uint16."""
        if self.bits <= 8:
            return torch.int8 if self.signed else torch.uint8
        return torch.int16 if self.signed else torch.uint16


def _check_levels(row: QType) -> None:
    levels = row.levels or ()
    if not 2 <= len(levels) <= 1 << row.bits:
        raise InputError(
            f"qtype {row.name!r}: a codebook of {len(levels)} entries; "
            f"{row.bits} bits hold 2 to {1 << row.bits}"
        )
    for lower, upper in pairwise(levels):
        if lower == upper:
            raise InputError(f"qtype {row.name!r}: the codebook repeats the entry {lower!r}")
        if not lower < upper:
            raise InputError(
                f"qtype {row.name!r}: codebook entries must ascend; {lower!r} is before {upper!r}"
            )
    if row.qmin != 0 or row.qmax != len(levels) - 1:
        raise InputError(f"qtype {row.name!r}: codes of {len(levels)} levels go from 0 to {len(levels) - 1}")


_TABLE: dict[str, QType] = {}


def register(row: QType) -> QType:
    """Add a row to the table and return it; from then on its name works everywhere.

    Raises InputError when the name is taken by a different row.
    """
    if _TABLE.setdefault(row.name, row) != row:
        raise InputError(f"qtype {row.name!r} is already registered as something else; choose another name")
    return row


def find(qtype: str | QType) -> QType:
    """The row of that name; a row is returned as it is. Raises InputError for an unknown name."""
    if isinstance(qtype, QType):
        return qtype
    try:
        return _TABLE[qtype]
    except (KeyError, TypeError):
        raise InputError(f"unknown qtype {qtype!r}; known are {', '.join(_TABLE)}") from None


def table() -> Iterator[QType]:
    """Every registered row, in the order of registration."""
    return iter(tuple(_TABLE.values()))


def int_row(bits: int) -> QType:
    """The row of a two's complement integer."""
    return QType(f"int{bits}", "int", bits, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def uint_row(bits: int) -> QType:
    """The row of an unsigned integer."""
    return QType(f"uint{bits}", "int", bits, 0, (1 << bits) - 1)


def float_row(
    name: str,
    exponent_bits: int,
    mantissa_bits: int,
    bias: int,
    specials: Specials,
    *,
    group_size: int | None = None,
    scale_type: str | None = None,
    tensor_scale: bool = False,
) -> QType:
    """The row of a narrow float; codes are its bit patterns."""
    fmt = FloatFormat(exponent_bits, mantissa_bits, bias, specials)
    bits = int(fmt.signed) + exponent_bits + mantissa_bits
    return QType(name, "float", bits, 0, (1 << bits) - 1, fmt, None, group_size, scale_type, tensor_scale)


def levels_row(name: str, bits: int, levels: tuple[float, ...], scale_type: str | None = None) -> QType:
    """The row of a codebook known in advance; ``levels`` ascend and are multiplied by the scale."""
    return QType(name, "codebook", bits, 0, len(levels) - 1, levels=levels, scale_type=scale_type)


def learned_row(bits: int) -> QType:
    """The row of a codebook learned from the data, of at most ``2 ** bits`` entries."""
    return QType(f"codebook{bits}", "codebook", bits, 0, (1 << bits) - 1)


def log_row(bits: int) -> QType:
    """Zero and the signed powers of two 1, 1/2, 1/4, ... that fit ``bits`` bits, with a power-of-two scale.

    Source: Zhou et al. 2017, Incremental Network Quantization, arXiv:1702.03044, section 2.1.
    """
    powers = [2.0**-k for k in range((1 << (bits - 1)) - 1)]
    levels = (*(-p for p in powers), 0.0, *reversed(powers))
    return levels_row(f"log{bits}", bits, levels, scale_type="e8m0")


def normal_row(bits: int) -> QType:
    """Levels of least squared error for normally distributed numbers, in their standard deviation; bfloat16 scales."""
    upper = _NORMAL[bits]
    levels = (*(-level for level in reversed(upper)), *upper)
    return levels_row(f"normal{bits}", bits, levels, scale_type="bf16")


# Dettmers et al. 2023, QLoRA, arXiv:2305.14314, appendix E.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

# Max 1960, "Quantizing for Minimum Distortion", table I: the upper halves for 4, 8 and 16 levels.
_NORMAL = {
    2: (0.4528, 1.510),
    3: (0.2451, 0.7560, 1.344, 2.152),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}

for _bits in (2, 3, 4, 5, 6, 7, 8, 16):
    register(int_row(_bits))
    register(uint_row(_bits))
register(QType("binary", "binary", 1, -1, 1))
register(QType("ternary", "ternary", 2, -1, 1))
register(float_row("fp16", 5, 10, 15, "ieee"))
register(float_row("bf16", 8, 7, 127, "ieee"))
register(float_row("fp8_e4m3fn", 4, 3, 7, "fn"))
register(float_row("fp8_e4m3fnuz", 4, 3, 8, "fnuz"))
register(float_row("fp8_e5m2", 5, 2, 15, "ieee"))
register(float_row("fp8_e5m2fnuz", 5, 2, 16, "fnuz"))
register(float_row("fp4_e2m1", 2, 1, 1, "none"))
register(float_row("e8m0", 8, 0, 127, "e8m0"))
register(float_row("mxfp8_e4m3", 4, 3, 7, "fn", group_size=32, scale_type="e8m0"))
register(float_row("mxfp8_e5m2", 5, 2, 15, "ieee", group_size=32, scale_type="e8m0"))
register(float_row("mxfp4", 2, 1, 1, "none", group_size=32, scale_type="e8m0"))
register(float_row("nvfp4", 2, 1, 1, "none", group_size=16, scale_type="fp8_e4m3fn", tensor_scale=True))
register(levels_row("nf4", 4, _NF4))
for _bits in _NORMAL:
    register(normal_row(_bits))
for _bits in (2, 3, 4, 5, 6, 7, 8):
    register(learned_row(_bits))
for _bits in (3, 4, 5):
    register(log_row(_bits))
