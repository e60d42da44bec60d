"""Codes to bytes and back.

The layout is one little-endian stream of bits: element i of the flattened (row-major) tensor occupies bits
``i * bits`` to ``(i + 1) * bits - 1``, where bit j of the stream is bit ``j % 8`` of byte ``j // 8``. So the
first of two 4-bit codes is the low nibble, as in ONNX, and a 16-bit code is two bytes, low byte first.
Negative codes are written in two's complement; a binary -1 is the bit 0, +1 the bit 1. The last byte is
filled with zero bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.checks import require_codes
from fewbits.numerics.layout import block_size
from fewbits.numerics.qtype import QType, find


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, qtype: str | QType) -> Tensor:
    """Pack unpacked integer codes of any shape into a 1-D uint8 tensor on the same device.

    Raises InputError for codes that are no integers or out of range.
    """
    row = find(qtype)
    if codes.is_floating_point():
        raise InputError(f"codes are integers, got {codes.dtype}")
    if codes.numel():
        require_codes(codes, row, row.qmax, "code")
    return pack_codes(codes, row)


def pack_codes(codes: Tensor, row: QType) -> Tensor:
    """``pack`` for codes known to be in range."""
    flat = codes.reshape(-1)
    out = torch.empty(packed_size(flat.numel(), row.bits), dtype=torch.uint8, device=codes.device)
    size = block_size(codes)
    step = size * row.bits // 8
    for number, block in enumerate(flat.split(size)):
        out[number * step : (number + 1) * step] = _pack_block(block, row)
    return out


def unpack(packed: Tensor, qtype: str | QType, shape: tuple[int, ...]) -> Tensor:
    """Unpack what ``pack`` wrote into codes of the given shape, in the row's code dtype.

    Raises InputError when ``packed`` is not a 1-D uint8 tensor of exactly the bytes the shape needs.
    """
    row = find(qtype)
    count = torch.Size(shape).numel()
    needed = packed_size(count, row.bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != needed:
        raise InputError(
            f"{count} {row.name} codes are {needed} bytes in a 1-D uint8 tensor, "
            f"got {tuple(packed.shape)} {packed.dtype}"
        )
    out = torch.empty(count, dtype=row.code_dtype, device=packed.device)
    size = block_size(packed)
    step = size * row.bits // 8
    for number, block in enumerate(packed.split(step)):
        target = out[number * size : (number + 1) * size]
        target.copy_(_unpack_block(block, row, target.numel()))
    return out.reshape(shape)


def _pack_block(codes: Tensor, row: QType) -> Tensor:
    if row.kind == "binary":
        codes = codes > 0
    codes = codes.to(row.code_dtype).contiguous()
    if row.bits in (8, 16):
        return codes.view(torch.uint8)
    if 8 % row.bits == 0:
        return _pack_within_bytes(codes.view(torch.uint8), row.bits)
    if row.bits < 8:
        return _pack_across_bytes(codes.view(torch.uint8), row.bits)
    fields = codes.int()
    shifts = torch.arange(row.bits, dtype=fields.dtype, device=codes.device)
    bits = ((fields.unsqueeze(-1) >> shifts) & 1).to(torch.uint8)
    return _pack_within_bytes(bits.view(-1), 1)


def _unpack_block(packed: Tensor, row: QType, count: int) -> Tensor:
    if row.bits in (8, 16):
        return packed.contiguous().view(row.code_dtype)
    if 8 % row.bits == 0:
        fields = _unpack_within_bytes(packed, row.bits)[:count]
    elif row.bits < 8:
        fields = _unpack_across_bytes(packed, row.bits)[:count]
    else:
        bits = _unpack_within_bytes(packed, 1)[: count * row.bits].view(count, row.bits)
        shifts = torch.arange(row.bits, dtype=torch.int32, device=packed.device)
        fields = (bits << shifts).sum(dim=-1, dtype=torch.int32)
    if row.kind != "binary" and not row.signed:
        return fields
    fields = fields.int()
    if row.kind == "binary":
        return fields * 2 - 1
    # Shifting the field to the top of the word and back repeats its sign bit.
    return (fields << (32 - row.bits)) >> (32 - row.bits)


# The word that holds the codes of one byte, one code in each of its bytes (the first in the lowest, as on
# every host that torch runs on), and the shifts that fold its upper half onto its lower, down to one byte.
_WORDS = {1: (torch.int64, (7, 14, 28)), 2: (torch.int32, (6, 12)), 4: (torch.int16, (4,))}
# A code's bits set in each byte of a word.
_MASKS = {bits: int.from_bytes(bytes([(1 << bits) - 1]) * (8 // bits), "little") for bits in _WORDS}


def _pack_within_bytes(fields: Tensor, bits: int) -> Tensor:
    """1, 2 and 4 bits, from uint8: a word of bytes is folded into its lowest byte."""
    dtype, shifts = _WORDS[bits]
    missing = -fields.numel() % (8 // bits)
    words = torch.nn.functional.pad(fields, (0, missing)).view(dtype) & _MASKS[bits]
    for shift in shifts:
        words |= words >> shift
    return words.to(torch.uint8)


def _unpack_within_bytes(packed: Tensor, bits: int) -> Tensor:
    dtype, shifts = _WORDS[bits]
    words = packed.to(dtype)
    for shift in reversed(shifts):
        words |= words << shift
    words &= _MASKS[bits]
    return words.view(torch.uint8)


def _pack_across_bytes(fields: Tensor, bits: int) -> Tensor:
    """3, 5, 6 and 7 bits, from uint8: eight codes, a byte each, move together until they fill ``bits`` bytes."""
    count = packed_size(fields.numel(), bits)
    words = torch.nn.functional.pad(fields, (0, -fields.numel() % 8)).view(torch.int64)
    words = words & _runs(1, bits, 1)
    for codes in (1, 2, 4):
        still = words & _runs(codes, bits, 2 * codes)
        words = still | (words ^ still) >> codes * (8 - bits)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].reshape(-1)[:count]


def _unpack_across_bytes(packed: Tensor, bits: int) -> Tensor:
    """The way back: ``bits`` bytes move apart into eight, halves first."""
    rows = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits)
    words = torch.nn.functional.pad(rows, (0, 8 - bits)).view(torch.int64).view(-1)
    for codes in (4, 2, 1):
        still = words & _runs(codes, bits, 2 * codes)
        words = still | (words ^ still) << codes * (8 - bits)
    return words.view(torch.uint8)


def _runs(codes: int, bits: int, size: int) -> int:
    """A word with the bits of so many neighbouring codes set at the lower end of every ``size`` bytes."""
    return sum(((1 << codes * bits) - 1) << 8 * start for start in range(0, 8, size))
