"""Apply a plan to a folded graph. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.onnx.batch_norm import statistics
from fewbits.models.onnx.bodies import all_nodes, outer_nodes
from fewbits.models.onnx.encode import Encoder, gather_rows, narrow
from fewbits.models.onnx.names import stems
from fewbits.planning.plan import ActivationPlan, LayerPlan, Plan

if TYPE_CHECKING:
    import onnx_ir as ir

Stems = Mapping[tuple[str, str], str]
LayerWriter = Callable[[Encoder, Plan, LayerPlan, "ir.Node", Stems], None]


def apply(folded: ir.Model, plan: Plan) -> ir.Model:
    """A copy of the folded model in which every tensor is represented as the plan says, in its target's forms."""
    return _rewritten(folded, plan, _write_codes)


def spell_out(folded: ir.Model, plan: Plan) -> ir.Model:
    """The plan's own arithmetic in plain float operators: what any engine's result is compared with.

    Weights are the numbers that their codes stand for, activations are quantized and brought back one by one.
    It shares no encoding of weights with :func:`apply`. Run it without graph optimizations.
    """
    return _rewritten(folded, plan, _write_numbers)


def _rewritten(folded: ir.Model, plan: Plan, write_layer: LayerWriter) -> ir.Model:
    import onnx_ir.passes.common as passes

    model = folded.clone()
    nodes = {node.name: node for node in all_nodes(model.graph)}
    encoder, names = Encoder(model.graph), stems(plan)
    for layer in plan.layers:
        if layer.weights:
            write_layer(encoder, plan, layer, nodes[layer.node], names)
    for activation in plan.activations:
        _write_activation(encoder, activation, nodes, outer_nodes(model.graph))
    for scaling in plan.scalings:
        for edge in scaling.readers:
            node = nodes[edge.node]
            value = node.inputs[edge.index]
            assert value is not None
            node.replace_input_with(edge.index, encoder.scaling(scaling, value, node))
    for norm in plan.norms:
        for index, (name, values) in statistics(norm).items():
            nodes[norm.node].replace_input_with(index, encoder.constant(name, values))
    model.graph.sort()
    passes.RemoveUnusedNodesPass()(model)
    return model


def _write_codes(encoder: Encoder, plan: Plan, layer: LayerPlan, node: ir.Node, names: Stems) -> None:
    if layer.op == "Gather":
        stem = names[layer.node, layer.weights[0].name]
        _replace_result(node, gather_rows(encoder, stem, layer.weights[0], node))
        return
    if layer.dynamic:
        write = _write_dynamic_lstm if layer.op == "LSTM" else _write_dynamic
        write(encoder, layer, node, names)
        return
    for weight in layer.weights:
        index = next(i for i, v in enumerate(node.inputs) if v is not None and v.name == weight.name)
        like = node.inputs[index]
        assert like is not None
        stem = names[layer.node, weight.name]
        node.replace_input_with(index, encoder.weight(stem, weight, plan.form(layer, weight), node, like))
    if layer.bias is not None:
        _write_bias(encoder, layer, node)


def _write_dynamic(encoder: Encoder, layer: LayerPlan, node: ir.Node, names: Stems) -> None:
    weight = layer.weights[0]
    result = encoder.dynamic(names[layer.node, weight.name], weight, node)
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        result = encoder.node("Add", [result, node.inputs[2]], node, f"{result.name}_biased", node.outputs[0])
    _replace_result(node, result)


def _write_dynamic_lstm(encoder: Encoder, layer: LayerPlan, node: ir.Node, names: Stems) -> None:
    weights = [(names[layer.node, weight.name], weight) for weight in layer.weights]
    for old, new in zip(node.outputs, encoder.dynamic_lstm(weights, node).outputs, strict=True):
        if old.name:
            _replace(old, new)


def _write_numbers(encoder: Encoder, plan: Plan, layer: LayerPlan, node: ir.Node, names: Stems) -> None:
    for weight in layer.weights:
        values = (
            weight.codes.dequantize().numpy()
            if weight.codes is not None
            else narrow(weight).astype(np.float32)
        )
        index = next(i for i, v in enumerate(node.inputs) if v is not None and v.name == weight.name)
        node.replace_input_with(index, encoder.constant(f"{weight.name}_of_{layer.node}_numbers", values))
    if layer.dynamic:
        value = node.inputs[0]
        assert value is not None
        node.replace_input_with(0, encoder.dynamic_round_trip(value, node))
    if layer.bias is not None:
        host, index = _bias_input(layer, node)
        host.replace_input_with(
            index, encoder.constant(f"{layer.bias.name}_of_{layer.node}", layer.bias.values)
        )


def _write_bias(encoder: Encoder, layer: LayerPlan, node: ir.Node) -> None:
    bias = layer.bias
    assert bias is not None
    host, index = _bias_input(layer, node)
    name = f"{bias.name}_of_{layer.node}"
    if bias.scale is None:
        host.replace_input_with(index, encoder.constant(name, bias.values))
    else:
        host.replace_input_with(index, encoder.bias(name, bias.values, bias.scale, host))


def _bias_input(layer: LayerPlan, node: ir.Node) -> tuple[ir.Node, int]:
    """The bias is an input of the layer's node, or of the Add that follows it."""
    assert layer.bias is not None
    hosts = (node, *(use.node for use in node.outputs[0].uses()))
    return next(
        (host, i)
        for host in hosts
        for i, value in enumerate(host.inputs)
        if value is not None and value.name == layer.bias.name
    )


def _replace_result(node: ir.Node, value: ir.Value) -> None:
    """Everything that read the node's result reads ``value``; a model's output keeps its name."""
    _replace(node.outputs[0], value)


def _replace(old: ir.Value, value: ir.Value) -> None:
    name = old.name
    is_output = old.is_graph_output()
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    if is_output:
        old.name = f"{name}_replaced"
        value.name = name


def _write_activation(
    encoder: Encoder,
    plan: ActivationPlan,
    nodes: Mapping[str | None, ir.Node],
    outer: Mapping[ir.Graph, ir.Node],
) -> None:
    readers = [nodes[edge.node] for edge in plan.site.readers]
    value = readers[0].inputs[plan.site.readers[0].index]
    assert value is not None
    before = readers[0]
    while before.graph is not encoder.graph:  # branches may read it too; they see what is outside
        before = outer[before.graph]  # type: ignore[index]
    result = encoder.activation(plan, value, before)
    for edge, reader in zip(plan.site.readers, readers, strict=True):
        reader.replace_input_with(edge.index, result)
