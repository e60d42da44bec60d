"""How much arithmetic each layer of a folded graph does."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fewbits.models.onnx.bodies import all_nodes
from fewbits.models.onnx.quiet import quiet
from fewbits.planning.model_info import LayerInfo

if TYPE_CHECKING:
    import onnx_ir as ir

SMALL = 256  # elements


def multiplications(folded: ir.Model, layers: Iterable[LayerInfo], size: int) -> dict[str, int | None]:
    """By layer, how often it multiplies for one sample; None where a shape follows from the data.

    Looking up an embedding multiplies nothing; of branches each counts as if it were taken. Samples are taken to lie on
    the first axis of inputs; other open axes have ``size`` elements.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants

    model = folded.clone()
    for value in model.graph.inputs:
        if value.shape is not None and len(value.shape):
            rest = (one if isinstance(one, int) else size for one in value.shape[1:])
            value.shape = ir.Shape([1, *rest])
    for node in all_nodes(model.graph):
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # it was inferred with samples on an open axis
    with quiet("onnxscript"):  # what shapes are computed from is folded, weights are not
        fold_constants(model, onnx_shape_inference=True, input_size_limit=SMALL, output_size_limit=SMALL)
    passes.ShapeInferencePass()(model)
    nodes = {node.name: node for node in all_nodes(model.graph)}
    return {layer.name: _of_layer(layer, nodes.get(layer.node)) for layer in layers}


def _of_layer(layer: LayerInfo, node: ir.Node | None) -> int | None:
    if layer.kind == "embedding" or node is None:  # or it was folded
        return 0
    if layer.inside not in (None, "If"):  # how often it runs
        return None
    if layer.kind == "recurrent":
        steps = _sizes(node.inputs[0])
        return None if steps is None else layer.params * steps[1 if _attribute(node, "layout") else 0]
    results = _sizes(node.outputs[0])
    if layer.kind == "conv":
        space = _sizes(node.inputs[0]) if node.op_type == "ConvTranspose" else results
        return None if space is None else layer.params * math.prod(space[2:])
    if results is None:
        return None
    if layer.weights:
        weight = layer.weights[0]
        return math.prod(results) * weight.shape[weight.group_axis]
    summed = _sizes(node.inputs[0])
    return None if summed is None else math.prod(results) * summed[-1]


def _sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None:
        return None
    sizes = tuple(size for size in value.shape if isinstance(size, int))
    return sizes if len(sizes) == len(value.shape) else None


def _attribute(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0
