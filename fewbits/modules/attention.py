"""Attention whose projections are products of codes; the products of two activations stay in float."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """``functional.multi_head_attention_forward`` of one input with itself, which is what encoders do.

    Inputs are [length, batch, channels], or without the batch. NotImplemented for what is rarer: other keys and values,
    biases or zeros appended to them.
    """
    rare = (bias_k, bias_v, static_k, static_v)
    if not (query is key and key is value) or use_separate_proj_weight or add_zero_attn:
        return NotImplemented
    if any(one is not None for one in rare) or (is_causal and attn_mask is None):
        return NotImplemented
    rows = query if query.dim() == 3 else query.unsqueeze(1)
    length, batch, channels = rows.shape
    projected = functional.linear(rows, in_proj_weight, in_proj_bias)
    size = channels // num_heads
    heads = projected.view(length, batch, 3, num_heads, size).permute(2, 1, 3, 0, 4)  # q, k, v
    mask = _mask(attn_mask, key_padding_mask, batch, num_heads, query.dtype)
    dropout = dropout_p if training else 0.0
    weights = None
    if need_weights:
        scores = heads[0] / math.sqrt(size) @ heads[1].transpose(-1, -2)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = functional.dropout(weights, dropout) if dropout else weights
        mixed = weights @ heads[2]
    else:
        mixed = functional.scaled_dot_product_attention(
            heads[0], heads[1], heads[2], attn_mask=mask, dropout_p=dropout
        )
    output = functional.linear(
        mixed.permute(2, 0, 1, 3).reshape(length, batch, channels), out_proj_weight, out_proj_bias
    )
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    if query.dim() == 2:
        return output.squeeze(1), None if weights is None else weights.squeeze(0)
    return output, weights


def _mask(
    attention: Tensor | None, padding: Tensor | None, batch: int, heads: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks in one that is added to the scores, [batch or 1, heads or 1, length or 1, length]."""
    found = None
    if attention is not None:
        attention = _additive(attention, dtype)
        found = (
            attention.view(1, 1, *attention.shape)
            if attention.dim() == 2
            else attention.unflatten(0, (batch, heads))
        )
    if padding is not None:
        padding = _additive(padding, dtype).view(batch, 1, 1, -1)
        found = padding if found is None else found + padding
    return found


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of truths (true: left out) as one of numbers."""
    return (
        torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
        if mask.dtype == torch.bool
        else mask
    )


class Watch(TorchFunctionMode):
    """Shows every torch function to :meth:`called`, and of attention the functions that it is made of."""

    @abstractmethod
    def called(self, func: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the function gives; torch functions that are called in here are not shown."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.multi_head_attention_forward:
            return self.called(func, args, kwargs)
        with self:
            result = multi_head_attention(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result
