"""Find pairs of layers between which channels may be rescaled, and rescale them: the graph computes what it did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.onnx.constants import constant, reduced_axes, scalar
from fewbits.models.onnx.names import Names
from fewbits.planning.equalization import Link, Rescaling
from fewbits.planning.model_info import LayerInfo

if TYPE_CHECKING:
    import onnx_ir as ir

POOLS = frozenset(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"))
RECTIFIERS = frozenset(("Relu", "LeakyRelu"))


def find_links(graph: ir.Graph, layers: Iterable[LayerInfo]) -> Iterator[Link]:
    """The pairs of layers between which channels may be rescaled, in the order of the graph.

    A weight or bias that something else reads as well is left alone, and so are layers inside bodies.
    """
    by_node = {layer.node: layer for layer in layers if layer.inside is None}
    for node in graph:
        layer = by_node.get(node.name or "")
        if layer is None or not _own_channels(layer) or not _alone(node, layer):
            continue
        found = _link(node, layer, by_node)
        if found is not None:
            yield found


def rescale(graph: ir.Graph, layers: Iterable[LayerInfo], found: Iterable[Rescaling]) -> None:
    """Rescale in place."""
    by_node = {layer.node: layer for layer in layers}
    nodes = {node.name: node for node in graph}
    names = Names(graph)
    for one in found:
        first, second = by_node[one.link.first], by_node[one.link.second]
        divisor, shift = one.divisor.astype(np.float64), one.shift.astype(np.float64)
        if one.link.bounded:
            _bound(graph, nodes[first.node], first, divisor, names)
        if first.bias is not None:
            _change(graph, first.bias, (_value(graph, first.bias) - shift) / divisor)
        read = _value(graph, second.weights[0].name)
        if shift.any():
            assert second.bias is not None
            moved = _times(read, second, shift)
            rest = tuple(axis for axis in range(read.ndim) if axis != second.weights[0].channel_axis)
            _change(graph, second.bias, _value(graph, second.bias) + moved.sum(axis=rest))
        made, info = _value(graph, first.weights[0].name), first.weights[0]
        _change(graph, info.name, made / _along(divisor, info.channel_axis, made.ndim))
        _change(graph, second.weights[0].name, _times(read, second, divisor))


def _own_channels(layer: LayerInfo) -> bool:
    """Every channel of its result has weights of its own, of one constant."""
    return layer.op in ("Conv", "Gemm", "MatMul") and layer.kind in ("conv", "linear")


def _alone(node: ir.Node, layer: LayerInfo) -> bool:
    """Nothing else reads the layer's constants."""
    names = {weight.name for weight in layer.weights} | {layer.bias}
    hosts = [node]
    if layer.op == "MatMul":
        hosts += [use.node for use in node.outputs[0].uses()]
    constants = [
        value for host in hosts for value in host.inputs if value is not None and value.name in names
    ]
    return all(len(value.uses()) == 1 and not value.is_graph_output() for value in constants)


def _link(node: ir.Node, layer: LayerInfo, by_node: Mapping[str, LayerInfo]) -> Link | None:
    shiftable, bounded, rectified = layer.bias is not None, False, False
    value = node.outputs[0]
    while True:
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not node.graph:
            return None
        reader = uses[0].node
        second = by_node.get(reader.name or "")
        if second is not None and second.weights:
            break
        passed = _passes(reader, layer)
        if passed is None or (bounded and passed == "bounded"):
            return None
        rectified = rectified or reader.op_type in ("Relu", "Clip")
        bounded = bounded or passed == "bounded"
        shiftable = shiftable and (reader.op_type == "Relu" or passed == "bias")
        value = reader.outputs[0]
    if not _own_channels(second) or not _alone(reader, second) or value.name not in second.inputs:
        return None
    channels = layer.weights[0].shape[layer.weights[0].channel_axis]
    read = second.weights[0].shape[second.weights[0].group_axis]
    if second.kind == "conv":
        if channels % read or second.weights[0].shape[0] % (channels // read):
            return None
    elif read != channels:
        return None
    unpadded = second.kind == "linear" or (second.geometry is not None and not any(second.geometry.pads))
    movable = shiftable and rectified and second.bias is not None and unpadded
    return Link(node.name or "", reader.name or "", value.name or "", channels, movable, bounded)


def _passes(node: ir.Node, layer: LayerInfo) -> str | None:
    """How a node passes on channels that positive factors may be drawn through; None where it does not."""
    if node.op_type in RECTIFIERS or node.op_type in POOLS:
        return "plain" if len([value for value in node.outputs if value.name]) == 1 else None
    if node.op_type == "Clip":
        low, high = (scalar(value) for value in (*node.inputs[1:], None, None)[:2])
        return "bounded" if low == 0 and high is not None and high > 0 else None
    if node.op_type == "Add" and layer.op == "MatMul":
        return "bias" if layer.bias in (value.name for value in node.inputs if value is not None) else None
    if node.op_type == "ReduceMean":
        axes = reduced_axes(node)
        return "plain" if axes and min(axes) > 1 and layer.kind == "conv" else None
    if node.op_type in ("Flatten", "Reshape", "Squeeze"):
        return "plain" if _drops_ones(node) else None
    return None


def _drops_ones(node: ir.Node) -> bool:
    """It makes [n, channels] of [n, channels, 1, ...]."""
    before = node.inputs[0].shape if node.inputs[0] is not None else None
    after = node.outputs[0].shape
    if before is None or after is None or len(after) != 2 or len(before) < 2:
        return False
    return all(size == 1 for size in before[2:]) and isinstance(after[1], int) and after[1] == before[1]


def _bound(graph: ir.Graph, node: ir.Node, layer: LayerInfo, divisor: np.ndarray, names: Names) -> None:
    """What behind this layer is cut at one number for all channels is cut at a number for each."""
    import onnx_ir as ir

    value = node.outputs[0]
    while (node := next(iter(value.uses())).node).op_type != "Clip":
        value = node.outputs[0]
    top = scalar(node.inputs[2])
    assert top is not None
    space = len(layer.weights[0].shape) - 2  # axes behind that of the channels
    bounds = (top / divisor).reshape(-1, *[1] * space).astype(np.float32)
    node.op_type = "Relu"
    node.resize_inputs(1)
    result = node.outputs[0]
    cut = ir.Value(name=names(f"{result.name}_bounded"), type=result.type, shape=result.shape)
    result.replace_all_uses_with(cut)
    stored = constant(graph, names(f"{result.name}_bounds"), bounds)
    graph.insert_after(
        node, ir.node("Min", [result, stored], outputs=[cut], name=names(f"{result.name}_bound"))
    )


def _times(weight: np.ndarray, layer: LayerInfo, factors: np.ndarray) -> np.ndarray:
    """A weight with what reads each channel multiplied by the channel's factor."""
    info = layer.weights[0]
    if layer.kind == "linear":
        return weight * _along(factors, info.group_axis, weight.ndim)
    groups = len(factors) // info.shape[1]
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    shape = (groups, 1, info.shape[1], *[1] * (weight.ndim - 2))
    return (parts * factors.reshape(shape)).reshape(weight.shape)


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _value(graph: ir.Graph, name: str) -> np.ndarray:
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().astype(np.float64)


def _change(graph: ir.Graph, name: str, array: np.ndarray) -> None:
    import onnx_ir as ir

    graph.initializers[name].const_value = ir.tensor(array.astype(np.float32), name=name)
