"""Constants of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer of that name."""
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds; None for anything else."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def reduced_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Those that a node reduces its first input along, from 0 on; None where they are not known."""
    of = node.inputs[0]
    given = node.inputs[1] if len(node.inputs) > 1 else None
    attribute = node.attributes.get("axes")
    if of is None or of.shape is None:
        return None
    if attribute is not None:
        axes = list(attribute.as_ints())
    elif given is not None and given.const_value is not None:
        axes = given.const_value.numpy().reshape(-1).tolist()
    else:
        return None
    return tuple(sorted(axis % len(of.shape) for axis in axes))
