"""Codes back to values: what every reader of codes has in common."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbits.numerics.codebook import lookup
from fewbits.numerics.layout import Layout, block_size
from fewbits.numerics.levels import decode_levels
from fewbits.numerics.parameters import Parameters
from fewbits.numerics.qtype import QType

_LARGEST = torch.finfo(torch.float32).max


def decode(codes: Tensor, row: QType, layout: Layout, parameters: Parameters, dtype: torch.dtype) -> Tensor:
    """The values of codes in the layout's shape, computed in float32 and given in ``dtype``."""
    out = layout.empty_rows(dtype, codes.device)
    rows = layout.split(codes)
    for block in layout.blocks(block_size(codes)):
        out[block] = decode_rows(rows[block], row, parameters.at(block[:2]))
    return layout.join(out)


def decode_rows(codes: Tensor, row: QType, parameters: Parameters) -> Tensor:
    """The float32 values of codes (channels, groups, length), whose parameters are those rows' own."""
    if parameters.codebook is not None:
        return lookup(codes, parameters.codebook)
    if row.float_format is not None or row.levels is not None:
        values = decode_levels(codes, row)
        return values if parameters.scale is None else values.mul_(parameters.scale)
    values = codes.float()
    zero = parameters.zero_point if parameters.free_zero_point is None else parameters.free_zero_point
    if zero is not None:
        values -= zero
    if parameters.scale is not None:
        values *= parameters.scale
    # A rounded zero point lets one end of the widest ranges reach half a step beyond float32.
    return values.clamp_(-_LARGEST, _LARGEST)
