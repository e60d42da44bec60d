"""Products of rows with codes, in torch's own kernels on the CPU: plain tensors in, plain tensors out.

What each costs is in docs/modules.md; ``make bench-modules`` measures it.
"""

from __future__ import annotations

import platform
import sys

import torch
from torch import Tensor

ALIGNED = 32  # bytes; torch's 8-bit kernel loads whole vectors without looking where they begin
STEP_8BIT = 16  # columns that it takes at a time, without looking whether there are as many
GROUPS_4BIT = (256, 128, 64, 32)  # columns that may share a scale in torch's 4-bit kernel
STEP_4BIT = 16  # rows of a weight must be a multiple of it
SMALLEST = torch.finfo(torch.float32).tiny


def _rows_dtype() -> torch.dtype | None:
    if platform.machine().lower() in ("arm64", "aarch64"):
        return torch.float32
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return torch.bfloat16 if vectors and sys.platform != "win32" else None


ROWS_DTYPE = _rows_dtype()
"""What torch's weight-only kernels multiply in fast; None where this CPU has slow ones only."""


def packed_8bit(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor] | None:
    """What :func:`rows_8bit` reads, from int8 codes [outputs, inputs] and scale float32 [outputs]; None: too odd.

    The codes are copied only where they do not begin where the kernel wants them to.
    """
    if ROWS_DTYPE is None or codes.shape[1] % STEP_8BIT:
        return None
    return aligned(codes), scale.to(ROWS_DTYPE)


def rows_8bit(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Rows, float [rows, inputs], times what :func:`packed_8bit` made; rounded to bfloat16 on x86."""
    rows = aligned(x.to(scale.dtype).contiguous())
    return torch._weight_int8pack_mm(rows, codes, scale).to(x.dtype)


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy of it that begins where whole vectors can be loaded."""
    if torch.compiler.is_compiling() or x.data_ptr() % ALIGNED == 0:
        return x
    return x.clone()


def group_4bit(shape: torch.Size, group_size: int | None) -> int | None:
    """Columns to a scale in torch's 4-bit kernel for codes [outputs, inputs] with theirs; None where it takes none."""
    length = shape[1] if group_size is None else group_size
    if ROWS_DTYPE is None or shape[0] % STEP_4BIT:
        return None
    return next((size for size in GROUPS_4BIT if length % size == 0), None)


def packed_4bit(codes: Tensor, scale: Tensor, zero: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    """What :func:`rows_4bit` reads, from codes of at most 4 bits.

    Args:
        codes: integers [outputs, inputs]; less ``zero`` they are from -8 to 7.
        scale: float32 [outputs, groups of the codes].
        zero: float32 of that shape, or None: the code of zero.
        group: columns to a scale in the kernel, a divisor of the codes' own groups.
    """
    assert ROWS_DTYPE is not None
    packed = torch._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32) + 8, 1)
    shift = torch.zeros_like(scale) if zero is None else -zero * scale
    repeats = codes.shape[1] // group // scale.shape[1]
    both = torch.stack([scale, shift], dim=-1).repeat_interleave(repeats, dim=1)
    return packed, both.transpose(0, 1).contiguous().to(ROWS_DTYPE)


def rows_4bit(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """Rows, float [rows, inputs], times what :func:`packed_4bit` made; rounded to bfloat16 on x86."""
    rows = x.to(scales.dtype).contiguous()
    return torch._weight_int4pack_mm_for_cpu(rows, packed, group, scales).to(x.dtype)


def dynamic_8bit(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Int8 products: each row of x rounded to 255 levels of its own, multiplied in integers, brought back.

    Args:
        x: float [rows, inputs].
        codes: int8 [outputs, inputs].
        scale: float32 [outputs].
        bias: [outputs], or what is added to each row, [rows, outputs].
    """
    rows = x.float()
    step = (rows.abs().amax(dim=-1, keepdim=True) / 127).clamp_(min=SMALLEST)
    levels = (rows / step).round_().to(torch.int8)
    products = torch._int_mm(levels, codes.t()) * step
    scaled = products.mul_(scale) if bias is None else torch.addcmul(bias.float(), products, scale)
    return scaled.to(x.dtype)
