"""Find the layers whose weights can be represented anew, and how their weights lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fewbits.errors import InputError
from fewbits.models.tflite.graph import Graph, Operator, Tensor
from fewbits.planning.model_info import ConvGeometry, LayerInfo, LayerKind, WeightInfo

SAME = 0  # schema.fbs, Padding


@dataclass(frozen=True)
class Kind:
    """How one operator holds its weights.

    Attributes:
        kind: its family.
        word: what ONNX calls it, so that recipes serve both.
        activation, weight, bias: positions of its inputs; None where it has none.
        order: axes of the weight as stored, in the order that plans have them: output channels, input channels (of a
            group), space.
    """

    kind: LayerKind
    word: str
    activation: int
    weight: int
    bias: int | None
    order: tuple[int, ...]


KINDS: Mapping[str, Kind] = {
    "CONV_2D": Kind("conv", "Conv", 0, 1, 2, (0, 3, 1, 2)),
    "DEPTHWISE_CONV_2D": Kind("conv", "Conv", 0, 1, 2, (3, 0, 1, 2)),
    "TRANSPOSE_CONV": Kind("conv", "ConvTranspose", 2, 1, 3, (0, 3, 1, 2)),
    "FULLY_CONNECTED": Kind("linear", "Gemm", 0, 1, 2, (0, 1)),
    "EMBEDDING_LOOKUP": Kind("embedding", "Gather", 0, 1, None, (0, 1)),
    "GATHER": Kind("embedding", "Gather", 1, 0, None, (0, 1)),
}
"""By the operator's name."""


def layer_inputs(operator: Operator, graph: Graph) -> tuple[Kind, Tensor, Tensor | None] | None:
    """Kind, weight and bias of an operator that is a layer; None where it has no constant float weight."""
    kind = KINDS.get(operator.name)
    if kind is None or len(operator.inputs) <= kind.weight or operator.inputs[kind.weight] < 0:
        return None
    weight = graph.tensors[operator.inputs[kind.weight]]
    if not weight.is_float or weight.data is None or len(weight.shape) != len(kind.order):
        return None
    if kind.kind == "embedding" and getattr(operator.options, "axis", None):
        return None
    bias = None
    if kind.bias is not None and len(operator.inputs) > kind.bias and operator.inputs[kind.bias] >= 0:
        bias = graph.tensors[operator.inputs[kind.bias]]
        if bias.data is None or not bias.is_float:
            return None
    return kind, weight, bias


def find_layers(path: Path, graph: Graph) -> tuple[LayerInfo, ...]:
    """The layers of the main subgraph in its order, with readable names that are unique.

    Raises:
        InputError: a layer's weight or bias holds NaN or Inf.
    """
    found: list[LayerInfo] = []
    taken: set[str] = set()
    for operator in graph.operators:
        parts = layer_inputs(operator, graph)
        if parts is None:
            continue
        for tensor in parts[1:]:
            if tensor is not None:
                _check_finite(path, tensor)
        layer = _layer(operator, graph, *parts)
        name, number = layer.name, 2
        while name in taken:
            name, number = f"{layer.name}#{number}", number + 1
        taken.add(name)
        found.append(replace(layer, name=name))
    return tuple(found)


def canonical(stored: np.ndarray, kind: Kind) -> np.ndarray:
    """A weight as plans have it, from how it is stored."""
    return np.array(stored.transpose(kind.order), order="C")


def as_stored(array: np.ndarray, kind: Kind) -> np.ndarray:
    """The reverse of :func:`canonical`."""
    return np.ascontiguousarray(array.transpose(np.argsort(kind.order)))


def layer_name(operator: Operator, graph: Graph, weight: Tensor | None = None) -> str:
    """What a person would call it: the path that the converter left in a tensor's name."""
    result = graph.tensors[operator.outputs[0]].name if operator.outputs else operator.name
    for name in (result, *(() if weight is None else (weight.name,))):
        first = name.split(";")[0]
        path, _, last = first.rpartition("/")
        if path and last[:1].isupper():
            return path
    return result.split(";")[0]


def _layer(operator: Operator, graph: Graph, kind: Kind, weight: Tensor, bias: Tensor | None) -> LayerInfo:
    shape = tuple(weight.shape[axis] for axis in kind.order)
    activation = graph.tensors[operator.inputs[kind.activation]]
    return LayerInfo(
        name=layer_name(operator, graph, weight),
        node=graph.node(operator),
        op=operator.name,
        kind=kind.kind,
        weights=(WeightInfo(weight.name, shape, 0, 1),),
        bias=None if bias is None else bias.name,
        inputs=(activation.name,),
        output=graph.tensors[operator.outputs[0]].name,
        geometry=_geometry(operator, activation, shape),
        also=(kind.word,),
    )


def _geometry(operator: Operator, activation: Tensor, weight: tuple[int, ...]) -> ConvGeometry | None:
    """How a convolution moves, where the size of what it moves over is known."""
    if operator.name not in ("CONV_2D", "DEPTHWISE_CONV_2D") or not activation.fixed:
        return None
    options = operator.options
    strides = (options.strideH, options.strideW)
    dilations = (options.dilationHFactor, options.dilationWFactor)
    size, kernel = activation.shape[1:3], weight[2:]
    pads = [(0, 0), (0, 0)]
    if options.padding == SAME:
        pads = [_same(*one) for one in zip(size, kernel, strides, dilations, strict=True)]
    groups = activation.shape[3] // weight[1]
    return ConvGeometry(
        strides, tuple(p[0] for p in pads) + tuple(p[1] for p in pads), dilations, groups, channels_last=True
    )


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's padding for as many results as there are strides: what is left over goes to the end."""
    needed = max(0, (math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return needed // 2, needed - needed // 2


def _check_finite(path: Path, tensor: Tensor) -> None:
    array = tensor.data
    assert array is not None
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        raise InputError(
            f"{path}: weight {tensor.name!r} has {array[index]} at index {list(index)} "
            f"({len(bad)} such values in all); a model with NaN or Inf in its weights cannot be compressed"
        )
