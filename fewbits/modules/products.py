"""How a coded weight is computed with: what it does when torch's functions get it for a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fewbits.modules import kernels
from fewbits.modules.attention import multi_head_attention
from fewbits.modules.recurrent import RECURRENT, multiply_codes
from fewbits.modules.static import StaticProducts

if TYPE_CHECKING:
    from fewbits.modules.weight import CodedWeight

FEW_ROWS = {8: 32, 4: 128}
"""Rows up to which torch's weight-only kernel of that many bits is faster than bringing the weight back.

The kernel reads a fraction of the bytes, and has no blocks for many rows; unpacking 4 bits costs more than 8.
"""

Computes = Callable[..., Any]


class Products(Protocol):
    """What a coded weight is multiplied with, and how; ``name`` is what files call it."""

    name: str

    def computes(self, function: Callable) -> Computes | None:
        """What stands for one of torch's functions where it gets a coded weight.

        Where there is nothing, or it gives NotImplemented, the function gets the tensor.
        """
        ...


class FloatProducts:
    """Activations stay in float: weight-only."""

    name = "float"

    def computes(self, function: Callable) -> Computes | None:
        """Linear layers and tables have their own ways."""
        return _FLOAT.get(function)


class DynamicProducts:
    """Activations are rounded to int8 as they come, each row with a step of its own, and multiplied in integers."""

    name = "int8 dynamic"

    def computes(self, function: Callable) -> Computes | None:
        """Linear and recurrent layers multiply codes with codes; the others are as of :class:`FloatProducts`."""
        return _DYNAMIC.get(function)


def float_linear(input: Tensor, weight: CodedWeight, bias: Tensor | None = None) -> Tensor:
    """``functional.linear`` with a weight as codes."""
    if needs_gradient(input) or input.device.type != "cpu":
        return functional.linear(input, weight.dequantize(input.dtype), bias)
    count = input.numel() // max(input.shape[-1], 1)
    bits = 8 if weight.row.bits == 8 else 4
    products = _few_rows(input, weight) if 0 < count <= FEW_ROWS[bits] else None
    if products is None:
        return functional.linear(input, weight.dequantize(input.dtype), bias)
    return products if bias is None else products + bias


def _few_rows(input: Tensor, weight: CodedWeight) -> Tensor | None:
    """Products by one of torch's weight-only kernels; None where none takes these codes."""
    rows = input.reshape(-1, input.shape[-1])
    if (codes := weight.rows_8bit()) is not None:
        found = kernels.rows_8bit(rows, *codes)
    elif (packed := weight.rows_4bit()) is not None:
        found = kernels.rows_4bit(rows, *packed)
    else:
        return None
    return found.view(*input.shape[:-1], found.shape[-1])


def dynamic_linear(input: Tensor, weight: CodedWeight, bias: Tensor | None = None) -> Tensor:
    """``functional.linear`` in int8 products; in float where there are no such kernels."""
    codes = weight.int8() if input.numel() and multiply_codes(input, weights=(weight,)) else None
    if codes is None:
        return float_linear(input, weight, bias)
    rows = kernels.dynamic_8bit(input.reshape(-1, input.shape[-1]), *codes, bias)
    return rows.view(*input.shape[:-1], rows.shape[-1])


def embedding(
    input: Tensor,
    weight: CodedWeight,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``functional.embedding``: the rows asked for are gathered as codes, then brought back.

    ``max_norm`` shortens rows as they are read, and leaves the table as it is.
    """
    found = weight.rows(input)
    return (
        found
        if max_norm is None
        else torch.renorm(found.flatten(0, -2), norm_type, 0, max_norm).view_as(found)
    )


def embedding_bag(
    input: Tensor,
    weight: CodedWeight,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """``functional.embedding_bag`` over the rows that are asked for."""
    flat = input.reshape(-1)
    table = embedding(flat, weight, None, max_norm, norm_type)
    places = torch.arange(len(flat), device=flat.device)
    padding = None
    if padding_idx is not None:
        padding = len(flat)  # one more row, which stands for all that are left out
        places = torch.where(flat == padding_idx % weight.shape[0], padding, places)
        table = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return functional.embedding_bag(
        places.view_as(input),
        table,
        offsets if offsets is None else offsets.to(places.dtype),
        mode=mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=padding,
    )


def needs_gradient(input: Tensor) -> bool:
    """Whether someone may ask for gradients, which torch's kernels for codes do not give."""
    return input.requires_grad and torch.is_grad_enabled()


_FLOAT: dict[Callable, Computes] = {
    functional.linear: float_linear,
    functional.embedding: embedding,
    functional.embedding_bag: embedding_bag,
}
_DYNAMIC: dict[Callable, Computes] = {
    **_FLOAT,
    functional.linear: dynamic_linear,
    functional.multi_head_attention_forward: multi_head_attention,
    **RECURRENT,
}

PRODUCTS: dict[str, type[Products]] = {
    kind.name: kind for kind in (FloatProducts, DynamicProducts, StaticProducts)
}
"""All ways by name."""
