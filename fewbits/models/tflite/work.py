"""How much arithmetic each layer of a graph does."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fewbits.models.tflite.graph import Graph
from fewbits.models.tflite.layers import KINDS
from fewbits.planning.model_info import LayerInfo


def multiplications(graph: Graph, layers: Iterable[LayerInfo]) -> dict[str, int | None]:
    """By layer, how often it multiplies for one sample; None where a shape is open."""
    samples = graph.tensors[graph.inputs[0]].shape[:1] if graph.inputs else ()
    return {layer.name: _of_layer(graph, layer, max(1, *samples, 1)) for layer in layers}


def _of_layer(graph: Graph, layer: LayerInfo, samples: int) -> int | None:
    if layer.kind == "embedding":
        return 0
    operator = graph.nodes[layer.node]
    turned = operator.name == "TRANSPOSE_CONV"
    moved = operator.inputs[KINDS[operator.name].activation] if turned else operator.outputs[0]
    tensor = graph.tensors[moved]
    if not tensor.fixed:
        return None
    return layer.params * math.prod(tensor.shape[:-1]) // samples
