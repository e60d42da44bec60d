"""From a tensor to rows of codes, and from those to a QTensor: what every way to quantize has in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.checks import require_floating
from fewbits.numerics.layout import Layout, RowBlock, block_size, layout_of
from fewbits.numerics.parameters import Parameters
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.qtype import QType


def layout_for(x: Tensor, row: QType, channel_axis: int | None, group_size: int | None) -> Layout:
    """The layout asked for, with the group size that a block format has of its own."""
    require_floating(x)
    if row.group_size is not None:
        if group_size not in (None, row.group_size):
            raise InputError(f"{row.name} has groups of {row.group_size}, got group_size {group_size}")
        group_size = row.group_size
    return layout_of(tuple(x.shape), channel_axis, group_size)


def encoded(x: Tensor, row: QType, layout: Layout, encode: Callable[[Tensor, RowBlock], Tensor]) -> Tensor:
    """Codes of the whole tensor as rows, block by block; ``encode`` is told which rows a part belongs to."""
    values = layout.split(x)
    codes = layout.empty_rows(row.code_dtype, x.device)
    for block in layout.blocks(block_size(x)):
        codes[block] = encode(values[block], block[:2])
    return codes


def assembled(
    codes: Tensor,
    row: QType,
    layout: Layout,
    parameters: Parameters,
    name: str | None,
    tensor_scale: Tensor | None = None,
) -> QTensor:
    """The QTensor of codes (channels, groups, length) and their parameters."""
    shape = layout.parameter_shape

    def shaped(parameter: Tensor | None) -> Tensor | None:
        return None if parameter is None else parameter.reshape(shape)

    book = parameters.codebook
    return QTensor(
        codes=layout.join(codes),
        qtype=row,
        scale=shaped(parameters.scale),
        zero_point=shaped(parameters.zero_point),
        free_zero_point=shaped(parameters.free_zero_point),
        codebook=None if book is None else book.reshape(*shape, book.shape[-1]),
        tensor_scale=tensor_scale,
        channel_axis=layout.channel_axis,
        group_size=layout.group_size,
        name=name,
    )
