"""Int8 products with ranges of activations known in advance, computed exactly: what an engine's int8 kernels compute.

An activation becomes uint8 codes, ``clamp(round(x / scale) + zero_point, 0, 255)``; products of codes are summed in
integers, the bias is added in the scale of the products, and the sum is brought back to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbits.modules.attention import multi_head_attention

if TYPE_CHECKING:
    from fewbits.modules.weight import CodedWeight

LARGEST_CODE = 255
LARGEST_INT32 = (1 << 31) - 1


class StaticProducts(nn.Module):
    """Activations are rounded to uint8 with a scale and a zero point for all of them.

    Attributes:
        scale: float32, the step.
        zero_point: int32, the code of zero.
    """

    name = "uint8 static"
    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float = 1.0, zero_point: int = 0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    def computes(self, function: Callable) -> Callable | None:
        """Linear layers and convolutions, and the projections of attention."""
        if function is functional.multi_head_attention_forward:
            return multi_head_attention
        multiply = STATIC.get(function)
        if multiply is None:
            return None

        def run(
            input: Tensor, weight: CodedWeight, bias: Tensor | None = None, *rest: Any, **more: Any
        ) -> Any:
            if (
                weight.row.name != "int8"
                or weight.layout.group_size is not None
                or weight.zero_point is not None
            ):
                return NotImplemented
            return self._multiplied(multiply, input, weight, bias, *rest, **more)

        return run

    def levels(self, x: Tensor) -> Tensor:
        """Codes less the zero point: integers as floats."""
        zero = self.zero_point.float()
        return ((x.float() / self.scale).round_() + zero).clamp_(0, LARGEST_CODE).sub_(zero)

    def _multiplied(
        self,
        multiply: Callable,
        input: Tensor,
        weight: CodedWeight,
        bias: Tensor | None,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        codes = weight.unpacked()
        channels = codes.shape[1 if multiply in _TRANSPOSED else 0]
        # float64 holds every integer up to 2^53: the sum is exact in any order.
        sums = multiply(self.levels(input).double(), codes.double(), None, *rest, **more)
        linear = multiply is functional.linear
        outputs = sums.shape[-1 if linear else 1 - codes.dim()]
        scale = self.scale * weight.values()["scale"].expand(channels)
        scale = scale.repeat(
            outputs // channels
        )  # groups of a transposed convolution share their channels' scales
        shape = (-1,) if linear else (-1, *(1,) * (codes.dim() - 2))
        if bias is not None:
            added = bias.double() / scale
            fits = bool((added.abs() < LARGEST_INT32).all())
            sums += (added.round_() if fits else added).view(shape)
        return (sums * scale.double().view(shape)).to(input.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StaticProducts:
        """Move; the scale stays float32."""
        for name, value in self._buffers.items():
            if value is not None:
                moved = fn(value)
                self._buffers[name] = moved if moved.dtype == value.dtype else value.to(moved.device)
        return self

    def extra_repr(self) -> str:
        """Its two numbers."""
        return f"scale {float(self.scale):.4g}, zero point {int(self.zero_point)}"


_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
STATIC: dict[Callable, Callable] = {
    one: one for one in (functional.linear, torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED)
}
"""Functions that are computed so."""
