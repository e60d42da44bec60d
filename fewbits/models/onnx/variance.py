"""Compute a variance in two passes where a graph does it in one.

``E[x**2] - E[x]**2`` subtracts two large numbers that are nearly equal: in bf16, with 8 bits of mantissa, nothing true
may be left of the difference. ``E[(x - E[x])**2]`` is the same number and keeps its precision.
Source: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.onnx.constants import constant, reduced_axes, scalar

if TYPE_CHECKING:
    import onnx_ir as ir

AXES_ARE_INPUTS = 13  # of Unsqueeze, from this opset on
TOLERANCE = 1e-5  # of 1 / n in float32


@dataclass(frozen=True)
class _Mean:
    """The node that reduces ``of`` over ``axes``; its result may have to be scaled by 1 / n behind it."""

    node: ir.Node
    of: ir.Value
    axes: tuple[int, ...]
    keepdims: bool


def two_pass_variance(graph: ir.Graph) -> int:
    """Rewrite every such difference in place, for the same result; the number of them is returned."""
    found = [node for node in graph if node.op_type == "Sub" and _rewritten(graph, node)]
    for node in found:
        graph.remove(node, safe=True)
    if found:
        graph.sort()
    return len(found)


def _rewritten(graph: ir.Graph, difference: ir.Node) -> bool:
    import onnx_ir as ir

    of_squares, mean = difference.inputs[0], _root(difference.inputs[1])
    squares, values = _mean(of_squares), _mean(mean)
    if of_squares is None or mean is None or squares is None or values is None:
        return False
    if _root(squares.of) is not values.of or (squares.axes, squares.keepdims) != (
        values.axes,
        values.keepdims,
    ):
        return False
    alone = all(len(value.uses()) == 1 for value in (of_squares, squares.node.outputs[0]))
    if not alone or of_squares.is_graph_output() or difference.outputs[0].is_graph_output():
        return False
    name = f"{difference.outputs[0].name}_deviation"
    if not values.keepdims:
        mean = _unsqueezed(graph, difference, mean, values.axes, name)
    deviation = ir.node("Sub", [values.of, mean], outputs=[ir.Value(name=name)])
    squared = ir.node("Mul", [deviation.outputs[0]] * 2, outputs=[ir.Value(name=f"{name}_squared")])
    graph.insert_before(difference, (deviation, squared))
    squares.node.replace_input_with(0, squared.outputs[0])
    ir.convenience.replace_all_uses_with(difference.outputs[0], of_squares)
    return True


def _root(value: ir.Value | None) -> ir.Value | None:
    """What the value is the square of."""
    node = None if value is None else value.producer()
    if node is None or len(node.inputs) != 2:
        return None
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    return node.inputs[0] if node.op_type == "Pow" and scalar(node.inputs[1]) == 2 else None


def _mean(value: ir.Value | None) -> _Mean | None:
    node = None if value is None else value.producer()
    factor = None
    if node is not None and node.op_type in ("Mul", "Div"):
        sides = [0] if node.op_type == "Div" else [0, 1]
        side = next((i for i in sides if scalar(node.inputs[1 - i]) is not None), None)
        if side is None:
            return None
        constant = scalar(node.inputs[1 - side])
        assert constant is not None
        factor = constant if node.op_type == "Mul" else 1 / constant if constant else math.inf
        scaled = node.inputs[side]
        node = None if scaled is None else scaled.producer()
    if node is None or node.op_type != ("ReduceMean" if factor is None else "ReduceSum"):
        return None
    of, axes = node.inputs[0], reduced_axes(node)
    if of is None or of.shape is None or not axes:
        return None
    if factor is not None:
        sizes = [size for axis in axes if isinstance(size := of.shape[axis], int)]
        if len(sizes) < len(axes) or abs(factor * math.prod(sizes) - 1) > TOLERANCE:
            return None
    keepdims = node.attributes.get("keepdims")
    return _Mean(node, of, axes, keepdims is None or bool(keepdims.as_int()))


def _unsqueezed(
    graph: ir.Graph, before: ir.Node, value: ir.Value, axes: tuple[int, ...], name: str
) -> ir.Value:
    import onnx_ir as ir

    result = ir.Value(name=f"{name}_mean")
    inputs: list[ir.Value] = [value]
    attributes: dict[str, tuple[int, ...]] = {}
    if graph.opset_imports[""] < AXES_ARE_INPUTS:
        attributes["axes"] = axes
    else:
        inputs.append(constant(graph, f"{name}_axes", np.array(axes, np.int64)))
    graph.insert_before(before, ir.node("Unsqueeze", inputs, attributes, outputs=[result]))
    return result
