"""Make a product and the bias added to it one Gemm, as PyTorch exports them.

ONNX Runtime does so by itself where both have two axes, and then asks for a bias in int32: with static int8 activations
and the float bias that the sum behind a MatMul has, it multiplies in float, and brings the weight back in every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def bias_into_gemm(graph: ir.Graph) -> None:
    """Rewrite in place every MatMul [n, k] by constant [k, m] whose one reader adds a constant [m]."""
    for node in list(graph):
        if node.op_type == "MatMul":
            _rewrite(graph, node)


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    x, weight = node.inputs
    product = node.outputs[0]
    uses = tuple(product.uses())
    if x is None or x.shape is None or len(x.shape) != 2 or len(uses) != 1 or product.is_graph_output():
        return
    add = uses[0].node
    shape = _shape(weight)
    if add.op_type != "Add" or add.graph is not graph or shape is None or len(shape) != 2:
        return
    bias = add.inputs[1 - uses[0].idx]
    if bias is None or _shape(bias) != shape[1:] or bias.dtype != product.dtype:
        return
    total = add.outputs[0]
    name = total.name
    node.op_type = "Gemm"
    node.resize_inputs(3)
    node.replace_input_with(2, bias)
    total.replace_all_uses_with(product, replace_graph_outputs=True)
    graph.remove(add, safe=True)
    product.name = name


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Of a constant."""
    return None if value is None or value.const_value is None else tuple(value.const_value.shape.numpy())
