"""LSTM, GRU and recurrent cells with int8 products, in torch's own loops.

The one place where torch's quantized tensors live: nothing else in torch steps through a sequence in int8 without
coming back to Python. They are made of the codes as they are, and stay inside. Activations are rounded as they come,
with one step for all rows of a time step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fewbits.modules.weight import CodedWeight

_OPS = torch.ops.quantized


def multiply_codes(*tensors: Tensor, weights: Sequence[Any]) -> bool:
    """Whether all weights are int8 codes that the kernels take, and nobody asks for gradients of the others."""
    if any(one.device.type != "cpu" or (one.requires_grad and torch.is_grad_enabled()) for one in tensors):
        return False
    return all(not isinstance(weight, Tensor) and weight.int8() is not None for weight in weights)


def lstm(input: Tensor, *rest: Any) -> Any:
    """``torch.lstm``, of padded or packed sequences."""
    return _sequence(torch.quantized_lstm, input, *rest, dtype=torch.qint8, use_dynamic=True)


def gru(input: Tensor, *rest: Any) -> Any:
    """``torch.gru``, of padded or packed sequences."""
    return _sequence(torch.quantized_gru, input, *rest)


def _sequence(run: Callable, input: Tensor, *rest: Any, **more: Any) -> Any:
    """torch's loop over a sequence; NotImplemented for projections, other dtypes, and weights without int8 codes."""
    packed = isinstance(rest[0], Tensor) and not rest[0].is_floating_point()
    sizes, (hx, weights, has_biases, *others) = ((rest[0],), rest[1:]) if packed else ((), rest)
    states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    count = 4 if has_biases else 2
    expected = others[0] * (1 + others[3]) * count  # layers, directions
    products = [weight for at, weight in enumerate(weights) if at % count < 2]
    floats = all(one.dtype == torch.float32 for one in (input, *states))
    if len(weights) != expected or not floats or not multiply_codes(input, *states, weights=products):
        return NotImplemented
    cells = [_cell(*weights[at : at + count]) for at in range(0, len(weights), count)]
    return run(input, *sizes, hx if isinstance(hx, Tensor) else list(hx), cells, True, *others, **more)


def _step(operator: Callable) -> Callable:
    """torch's function for one step of a cell."""

    def run(
        input: Tensor,
        hx: Tensor | Sequence[Tensor],
        w_ih: Any,
        w_hh: Any,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        floats = all(one.dtype == torch.float32 for one in (input, *states))
        if not floats or not multiply_codes(input, *states, weights=(w_ih, w_hh)):
            return NotImplemented
        packed = [_packed(weight, bias) for weight, bias in ((w_ih, b_ih), (w_hh, b_hh))]
        return operator(
            input, hx if isinstance(hx, Tensor) else list(hx), *packed, *_biases(w_ih, b_ih, b_hh)
        )

    return run


def _cell(
    w_ih: CodedWeight, w_hh: CodedWeight, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Any:
    """What torch's loops read of one layer in one direction."""
    packed = _packed(w_ih, b_ih), _packed(w_hh, b_hh)
    return _OPS.make_quantized_cell_params_dynamic(*packed, *_biases(w_ih, b_ih, b_hh), _saturates())


def _packed(weight: CodedWeight, bias: Tensor | None) -> Any:
    """Codes and bias as torch's kernels read them; made again when the bias has changed."""
    bias = None if bias is None else bias.detach()
    stamp = None if bias is None else (bias.data_ptr(), 0 if bias.is_inference() else bias._version)
    return weight.once(("cell", stamp), lambda: _pack(weight, bias))


def _pack(weight: CodedWeight, bias: Tensor | None) -> Any:
    codes = weight.int8()
    assert codes is not None
    levels, scale = codes
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that quantized tensors are deprecated is known, and said above
        quantized = torch._make_per_channel_quantized_tensor(levels.contiguous(), scale.double(), zeros, 0)
        return _OPS.linear_prepack(quantized, bias)


def _biases(weight: CodedWeight, *biases: Tensor | None) -> Iterator[Tensor]:
    """Biases, or zeros, without which the loops will not run; those that count are packed with the codes."""
    for bias in biases:
        yield torch.zeros(weight.shape[0]) if bias is None else bias.detach()


def _saturates() -> bool:
    """Whether sums of two products overflow 16 bits on this CPU, so that activations get 7 bits."""
    capabilities = getattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})()
    return bool(capabilities.get("avx2")) and not capabilities.get("avx512_vnni")


RECURRENT: dict[Callable, Callable] = {
    torch.lstm: lstm,
    torch.gru: gru,
    torch.lstm_cell: _step(_OPS.quantized_lstm_cell_dynamic),
    torch.gru_cell: _step(_OPS.quantized_gru_cell_dynamic),
    torch.rnn_tanh_cell: _step(_OPS.quantized_rnn_tanh_cell_dynamic),
    torch.rnn_relu_cell: _step(_OPS.quantized_rnn_relu_cell_dynamic),
}
"""By torch's functions, for coded weights."""
