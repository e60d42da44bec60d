"""What batch norms say of the tensors that they make, before they become part of convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.onnx.bodies import all_nodes
from fewbits.models.onnx.constants import scalar
from fewbits.planning.model_info import Expected, LayerInfo
from fewbits.planning.plan import NormPlan

if TYPE_CHECKING:
    import onnx_ir as ir

INFINITE = float("inf")
MEAN_INPUT, VARIANCE_INPUT = 3, 4  # of BatchNormalization


def with_expected(layers: tuple[LayerInfo, ...], source: ir.Graph, folded: ir.Graph) -> tuple[LayerInfo, ...]:
    """The layers, with what batch norms of the source say of the inputs of convolutions, behind a rectifier or not."""
    normal = _normal(source)
    if not normal:
        return layers
    values = {value.name: value for node in folded for value in node.outputs}
    return tuple(
        replace(layer, expected=_expected(values.get(layer.inputs[0]), normal))
        if layer.kind == "conv" and layer.inputs
        else layer
        for layer in layers
    )


def statistics(norm: NormPlan) -> dict[int, tuple[str, np.ndarray]]:
    """The constants that a batch norm of the plan reads: by position of its input, a name and float32 [channels]."""
    return {
        MEAN_INPUT: (f"{norm.node}_rounded_mean", norm.mean),
        VARIANCE_INPUT: (f"{norm.node}_rounded_variance", norm.variance),
    }


def _normal(source: ir.Graph) -> dict[str, Expected]:
    """By tensor, what the batch norm that makes it brings its channels to."""
    found = {}
    for node in all_nodes(source):
        if node.op_type != "BatchNormalization":
            continue
        scale, bias = (None if value is None else value.const_value for value in node.inputs[1:3])
        if scale is not None and bias is not None:
            mean, std = np.array(bias.numpy()), np.abs(scale.numpy())
            found[node.outputs[0].name or ""] = Expected(mean, std, -INFINITE, INFINITE)
    return found


def _expected(value: ir.Value | None, normal: Mapping[str, Expected]) -> Expected | None:
    if value is None or value.name in normal:
        return None if value is None else normal[value.name or ""]
    node = value.producer()
    before = None if node is None or node.inputs[0] is None else normal.get(node.inputs[0].name or "")
    if node is None or before is None:
        return None
    if node.op_type == "Relu":
        return replace(before, low=0.0)
    if node.op_type == "Clip":
        low, high = (scalar(end) for end in (*node.inputs[1:], None, None)[:2])
        return replace(before, low=-INFINITE if low is None else low, high=INFINITE if high is None else high)
    return None
