"""Apply a plan to a folded graph. Nothing here decides anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.onnx.encode import Encoder, gather_rows
from fewbits.planning.plan import ActivationPlan, LayerPlan, Plan

if TYPE_CHECKING:
    import onnx_ir as ir


def apply(folded: ir.Model, plan: Plan) -> ir.Model:
    """A copy of the folded model in which every tensor is represented as the plan says."""
    import onnx_ir.passes.common as passes

    model = folded.clone()
    graph = model.graph
    nodes = {node.name: node for node in graph}
    encoder = Encoder(graph)
    for layer in plan.layers:
        if layer.weights:
            _write_layer(encoder, plan, layer, nodes[layer.node])
    for activation in plan.activations:
        _write_activation(encoder, activation, nodes)
    graph.sort()
    passes.RemoveUnusedNodesPass()(model)
    return model


def _write_layer(encoder: Encoder, plan: Plan, layer: LayerPlan, node: ir.Node) -> None:
    if layer.op == "Gather":
        rows = gather_rows(encoder, layer.weights[0], node)
        node.outputs[0].replace_all_uses_with(rows, replace_graph_outputs=True)
        return
    for weight in layer.weights:
        form = "dequantize" if layer.static else plan.target.weight_form(weight.scheme.qtype)
        index = next(i for i, v in enumerate(node.inputs) if v is not None and v.name == weight.name)
        like = node.inputs[index]
        assert like is not None
        node.replace_input_with(index, encoder.weight(weight, form or "dequantize", node, like))
    if layer.bias is not None:
        _write_bias(encoder, layer, node)


def _write_bias(encoder: Encoder, layer: LayerPlan, node: ir.Node) -> None:
    """The bias is an input of the layer's node, or of the Add that follows it."""
    bias = layer.bias
    assert bias is not None
    following = [use.node for use in node.outputs[0].uses()]
    host, index = next(
        (n, i) for n in (node, *following) for i, v in enumerate(n.inputs) if v is not None and v.name == bias.name
    )
    name = f"{bias.name}_of_{layer.node}"
    if bias.scale is None:
        host.replace_input_with(index, encoder.constant(name, bias.values.astype(np.float32)))
    else:
        host.replace_input_with(index, encoder.bias(name, bias.values, bias.scale, host))


def _write_activation(encoder: Encoder, plan: ActivationPlan, nodes: dict[str | None, ir.Node]) -> None:
    readers = [nodes[edge.node] for edge in plan.site.readers]
    value = readers[0].inputs[plan.site.readers[0].index]
    assert value is not None
    result = encoder.activation(plan, value, readers[0])
    for edge, reader in zip(plan.site.readers, readers, strict=True):
        reader.replace_input_with(edge.index, result)
