"""Find constants that are integer codes already, in a file that came in quantized."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

CODES = frozenset(("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"))
"""Types that weights have as codes; wider integers count and index as well."""

ON_THE_WAY = frozenset(("Cast", "Sub", "Mul", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"))
"""Operators between codes and the layer that reads them, beside DequantizeLinear."""

READ_CODES = frozenset(
    (
        "MatMulInteger",
        "ConvInteger",
        "QLinearMatMul",
        "QLinearConv",
        "QGemm",
        "MatMulNBits",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulIntegerToFloat",
        "GatherBlockQuantized",
    )
)
"""Operators that take codes as they are."""

WEIGHTS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), slice(1, 2)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), slice(1, 3)),
    "MatMul": slice(0, 2),
}
"""Which inputs of a layer may be weights."""


def brings_back(node: ir.Node) -> bool:
    """Whether the node makes wider numbers of a constant tensor of codes."""
    if node.op_type not in ("Cast", "DequantizeLinear") or not node.inputs:
        return False
    codes, result = node.inputs[0], node.outputs[0].dtype
    if codes is None or codes.const_value is None or not codes.const_value.shape.rank():
        return False
    stored = codes.const_value.dtype
    if node.op_type == "DequantizeLinear":
        return True
    return stored.name in CODES and (result is None or result.bitwidth > stored.bitwidth)


def from_codes(value: ir.Value | None) -> bool:
    """Whether a value is brought back from a constant tensor of codes, and from nothing that is not constant."""
    node = None if value is None else value.producer()
    if node is None:
        return False
    if brings_back(node):
        return True
    if node.op_type not in ON_THE_WAY:
        return False
    computed = [one for one in node.inputs if one is not None and one.const_value is None]
    return bool(computed) and all(map(from_codes, computed))


def count_layers_in_codes(nodes: Iterable[ir.Node]) -> int:
    """How many nodes multiply with, or look up, weights that are integer codes already."""
    return sum(map(_reads_codes, nodes))


def _reads_codes(node: ir.Node) -> bool:
    if node.op_type in READ_CODES:
        return True
    if node.op_type == "Gather":
        table = node.inputs[0]
        constant = None if table is None else table.const_value
        return constant is not None and constant.dtype.name in CODES and constant.shape.rank() > 1
    return node.op_type in WEIGHTS and any(map(from_codes, node.inputs[WEIGHTS[node.op_type]]))
