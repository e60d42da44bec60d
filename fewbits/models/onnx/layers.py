"""Find the layers of a folded graph whose tensors can be represented anew."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits.errors import InputError
from fewbits.models.onnx.bodies import all_nodes, outer_nodes
from fewbits.models.onnx.codes import from_codes
from fewbits.planning.model_info import ConvGeometry, LayerInfo, LayerKind, WeightInfo

if TYPE_CHECKING:
    import onnx_ir as ir

RECURRENT = ("LSTM", "GRU", "RNN")
CHECKED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "BatchNormalization", *RECURRENT))
SCOPES = "pkg.torch.onnx.name_scopes"
FLOAT = "FLOAT"


def find_layers(path: Path, graph: ir.Graph) -> tuple[LayerInfo, ...]:
    """The layers of the graph and of what its nodes run inside, in order, with readable names that are unique.

    Raises:
        InputError: a layer's weight or bias holds NaN or Inf (the tensor and the first index are named).
    """
    found = []
    taken: set[str] = set()
    outer = outer_nodes(graph)
    for node in all_nodes(graph):
        layer = _layer(node)
        if layer is None:
            continue
        if (runs := outer.get(node.graph)) is not None:  # type: ignore[arg-type]
            layer = replace(layer, inside=runs.op_type)
        name, number = layer.name, 2
        while name in taken:
            name, number = f"{layer.name}#{number}", number + 1
        taken.add(name)
        found.append(replace(layer, name=name))
        for value in node.inputs:
            if value is not None and value.const_value is not None:
                _check_finite(path, value)
    return tuple(found)


def check_weights(path: Path, graph: ir.Graph | ir.Function) -> None:
    """Look for NaN and Inf in a graph as it was read: folding would carry them into tensors of other names.

    Raises:
        InputError: a constant of a layer or a batch norm holds one (the tensor and the first index are named).
    """
    for node in all_nodes(graph):
        if node.op_type in CHECKED:
            for value in node.inputs:
                if value is not None and value.const_value is not None:
                    _check_finite(path, value)


def _layer(node: ir.Node) -> LayerInfo | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    weights = tuple(_weights(node))
    kind = _kind(node, weights)
    if kind is None:
        return None
    constant = {weight.name for weight in weights}
    output = next((value.name for value in node.outputs if value.name), None)  # the first may be left out
    if output is None:
        return None
    return LayerInfo(
        name=_name(node, weights),
        node=node.name or "",
        op=node.op_type,
        kind=kind,
        weights=weights,
        bias=_bias(node),
        inputs=tuple(
            value.name
            for value in node.inputs[: 2 if kind == "matmul" else None]
            if value is not None and value.name and value.const_value is None and value.name not in constant
        ),
        output=output,
        geometry=_geometry(node, weights),
        dynamic=node.op_type == "LSTM" if kind == "recurrent" else None,
    )


def _kind(node: ir.Node, weights: tuple[WeightInfo, ...]) -> LayerKind | None:
    if weights:
        if node.op_type in ("Conv", "ConvTranspose"):
            return "conv"
        if node.op_type in ("Gemm", "MatMul"):
            right = node.inputs[1]
            plain = right is not None and right.name == weights[0].name and len(weights[0].shape) == 2
            return "linear" if plain else "product"
        return "embedding" if node.op_type == "Gather" else "recurrent"
    both_computed = node.op_type == "MatMul" and all(
        v is not None and v.const_value is None and not from_codes(v) for v in node.inputs
    )
    return "matmul" if both_computed else None


def _weights(node: ir.Node) -> Iterator[WeightInfo]:
    """Constant float tensors with at least two axes, and which axis is a channel and which is summed over."""
    op = node.op_type
    if op == "Conv":
        axes = {1: (0, 1)}
    elif op == "ConvTranspose":
        axes = {1: (1, 0)}
    elif op == "Gemm":
        axes = {1: (0, 1) if _attribute(node, "transB") else (1, 0)}
    elif op == "MatMul":
        axes = {0: (-2, -1), 1: (-1, -2)}
    elif op == "Gather" and not _attribute(node, "axis"):
        axes = {0: (0, -1)}
    elif op in RECURRENT:
        axes = {1: (1, 2), 2: (1, 2)}
    else:
        return
    for index, (channel, group) in axes.items():
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value.const_value is None or value.const_value.dtype.name != FLOAT:
            continue
        shape = tuple(value.const_value.shape.numpy())
        if len(shape) < 2 or (op == "Gather" and shape[1:] == (1,)):  # a column, such as the scales of rows
            continue
        rank = len(shape)
        yield WeightInfo(value.name or "", shape, channel % rank, group % rank)


def _bias(node: ir.Node) -> str | None:
    """The constant, one axis, that is added to the layer's result: its own input, or that of the Add that follows."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        candidates = list(node.inputs[2:3])
    elif node.op_type == "MatMul" and len(node.outputs[0].uses()) == 1:
        reader = next(iter(node.outputs[0].uses())).node
        candidates = list(reader.inputs) if reader.op_type == "Add" and reader.graph is node.graph else []
    else:
        candidates = []
    for value in candidates:
        if value is not None and value.const_value is not None and len(value.const_value.shape) == 1:
            return value.name
    return None


def _geometry(node: ir.Node, weights: tuple[WeightInfo, ...]) -> ConvGeometry | None:
    padding = node.attributes.get("auto_pad")
    if node.op_type != "Conv" or (padding is not None and padding.as_string() not in ("NOTSET", "VALID")):
        return None
    axes = len(weights[0].shape) - 2

    def numbers(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        attribute = node.attributes.get(name)
        return tuple(attribute.as_ints()) if attribute is not None else default

    group = node.attributes.get("group")
    return ConvGeometry(
        numbers("strides", (1,) * axes),
        numbers("pads", (0,) * (2 * axes)),
        numbers("dilations", (1,) * axes),
        group.as_int() if group is not None else 1,
    )


def _attribute(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


def _name(node: ir.Node, weights: tuple[WeightInfo, ...]) -> str:
    """The module's path: from the weight's name, or as the exporter recorded it; else the node's own name."""
    if weights and weights[0].name.endswith(".weight"):
        return weights[0].name.removesuffix(".weight")
    scopes = re.findall(r"'([^']*)'", node.metadata_props.get(SCOPES, ""))
    if len(scopes) > 1 and scopes[-2]:
        return f"{scopes[-2]}.{node.op_type.lower()}" if not weights else scopes[-2]
    return node.name or node.op_type


def _check_finite(path: Path, value: ir.Value) -> None:
    assert value.const_value is not None
    array = value.const_value.numpy()
    if array.dtype.kind != "f" or not array.size or np.isfinite(array.sum(dtype=np.float64)):
        return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        raise InputError(
            f"{path}: weight {value.name!r} has {array[index]} at index {list(index)} "
            f"({len(bad)} such values in all); a model with NaN or Inf in its weights cannot be compressed"
        )
