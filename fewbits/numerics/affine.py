"""Uniform quantization: ``x ~ (code - zero_point) * scale``, rounding half to even.

Functions here work on rows, (channels, groups, length), with parameters (channels, groups, 1); see Layout.
Sources: ONNX QuantizeLinear; Jacob et al. 2018, arXiv:1712.05877.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.qtype import QType, find

_FLOAT32 = torch.finfo(torch.float32)
LARGEST_VALUE = _FLOAT32.max * (1 - 2**-22)  # room for the roundings of a division and a product
SMALLEST_SCALE = _FLOAT32.tiny  # below it a reciprocal overflows and hardware may flush to 0


@dataclass(frozen=True, slots=True)
class CodeRange:
    """The integer codes in use, and where zero sits when it is fixed (symmetric) rather than fitted."""

    qmin: int
    qmax: int
    symmetric: bool

    @property
    def center(self) -> int:
        """The code of zero when symmetric: 0 for signed codes, the middle of the range for unsigned ones."""
        return 0 if self.qmin < 0 else (self.qmin + self.qmax + 1) // 2

    @property
    def steps(self) -> int:
        """Steps between the lowest and the highest code."""
        return self.qmax - self.qmin


def code_range(
    row: QType, symmetric: bool | None = None, qmin: int | None = None, qmax: int | None = None
) -> CodeRange:
    """The codes an integer row uses.

    ``symmetric`` None means symmetric for signed rows and asymmetric for unsigned ones. Symmetric codes leave
    out the lowest one, so that they mirror: int8 is -127 to 127, and symmetric uint8 1 to 255 around 128.
    ``qmin`` and ``qmax`` override either end. Raises InputError for ends the row cannot hold.
    """
    if row.kind != "int":
        raise InputError(
            f"qtype {row.name!r} is of kind {row.kind!r}; uniform quantization needs an int or uint row"
        )
    if symmetric is None:
        symmetric = row.signed
    low = row.qmin + int(symmetric) if qmin is None else qmin
    high = row.qmax if qmax is None else qmax
    if not row.qmin <= low < high <= row.qmax:
        raise InputError(
            f"codes from {low} to {high} are not a range within {row.name}'s {row.qmin} to {row.qmax}"
        )
    found = CodeRange(low, high, symmetric)
    if symmetric and not low < found.center < high:
        raise InputError(
            f"symmetric {row.name} codes need {found.center} inside their range, got {low} to {high}"
        )
    return found


def scale_zero_point(
    low: Tensor,
    high: Tensor,
    qtype: str | QType,
    *,
    symmetric: bool | None = None,
    qmin: int | None = None,
    qmax: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Turn ranges into (scale, zero point): float32 and int32, each of the shape of ``low``.

    The range is first widened to hold zero. Asymmetric: ``scale = (high - low) / (qmax - qmin)``, the
    zero point rounded half to even. Symmetric: the smallest step that reaches both ends; the zero point is
    None for signed codes. A range of only zero gets scale 1; other scales are at least the smallest
    normal float32.
    Raises InputError for ends that are not finite or out of order.
    """
    codes = code_range(find(qtype), symmetric, qmin, qmax)
    low = torch.as_tensor(low, dtype=torch.float32)
    high = torch.as_tensor(high, dtype=torch.float32)
    if not bool((torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()):
        raise InputError("a range needs finite ends, the lower first")
    return fit_range(low, high, codes)


def fit_range(low: Tensor, high: Tensor, codes: CodeRange) -> tuple[Tensor, Tensor | None]:
    """``scale_zero_point`` for a known CodeRange, without its checks."""
    if codes.symmetric:
        center = codes.center
        # Of an end on the wrong side of zero the quotient is negative.
        scale = torch.maximum(high / (codes.qmax - center), low / (codes.qmin - center))
        scale = nonzero(scale.clamp_(max=LARGEST_VALUE / (codes.qmax - center)), low, high)
        return scale, torch.full_like(scale, center, dtype=torch.int32) if center else None
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = nonzero(span(low, high, codes), low, high)
    zero_point = torch.round(codes.qmin - low / scale).clamp_(codes.qmin, codes.qmax)
    return scale, zero_point.to(torch.int32)


def span(low: Tensor, high: Tensor, codes: CodeRange) -> Tensor:
    """The step that takes all the codes from ``low`` to ``high``."""
    step = (high - low) / codes.steps
    # The difference of two large ends overflows where the difference of two quotients does not.
    return torch.where(torch.isfinite(step), step, high / codes.steps - low / codes.steps)


def nonzero(step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The step at least the smallest normal float32, in place; 1 where the range is zero alone."""
    empty = (low == 0) & (high == 0)
    return step.clamp_(min=SMALLEST_SCALE).masked_fill_(empty, 1.0)


def textbook_scale(x_min: float, x_max: float, bits: int) -> float:
    """The k-bit formula of textbooks, ``(x_max - x_min) / (2 ** bits - 1)``.

    It equals ``scale_zero_point`` for the unsigned row of that many bits whenever zero is within the range.
    """
    return (x_max - x_min) / (2**bits - 1)


@dataclass(frozen=True, slots=True)
class Grid:
    """The parameters of uniform rows, each (channels, groups, 1).

    ``zero_point`` is int32; ``free_zero_point`` is float32, in code units, and takes its place where the
    search lets zero fall between codes.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    free_zero_point: Tensor | None = None


def spanning(low: Tensor, high: Tensor, codes: CodeRange) -> Grid:
    """The grid that reaches from ``low`` to ``high``; where they are equal the step is that one value.

    A row of one value c is then ``c * 1`` and exact, which ``c / qmax * qmax`` is not.
    """
    scale, zero_point = fit_range(low, high, codes)
    constant = low == high
    if bool(constant.any()):
        scale = torch.where(constant, nonzero(low.abs(), low, high), scale)
        if zero_point is not None and not codes.symmetric:
            zero_point = torch.where(constant, codes.qmin + (low < 0).int(), zero_point)
    return Grid(scale, zero_point)


Bounds = tuple[Tensor, Tensor] | tuple[int, int]


def level_bounds(zero_point: Tensor | None, codes: CodeRange) -> Bounds:
    """The lowest and the highest code less the zero point."""
    if zero_point is None:
        return codes.qmin, codes.qmax
    zero = zero_point.float()
    return codes.qmin - zero, codes.qmax - zero


def encode_affine(rows: Tensor, grid: Grid, codes: CodeRange) -> Tensor:
    """``clamp(round(rows / scale) + zero_point)``, in float32; a free zero point is added before rounding."""
    steps = rows / grid.scale
    if grid.free_zero_point is not None:
        steps += grid.free_zero_point
    steps.round_()
    if grid.zero_point is not None:
        steps += grid.zero_point
    return steps.clamp_(codes.qmin, codes.qmax)


def truncate(values: Tensor, row: QType, *, saturate: bool) -> Tensor:
    """Integers without the fraction; too large ones saturate, or keep their low bits as in ONNX Cast."""
    whole = values.trunc()
    if saturate:
        return whole.clamp_(row.qmin, row.qmax)
    return (whole.long() - row.qmin) % (1 << row.bits) + row.qmin
