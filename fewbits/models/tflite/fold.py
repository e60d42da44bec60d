"""Shapes that a file computes while it runs, and that only the batch can change, become constants.

Converters leave SHAPE, STRIDED_SLICE and PACK in front of a RESHAPE where the batch is open. A constant with -1 for the
batch says the same; without those operators the file is smaller, and XNNPACK takes the whole graph in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.tflite.graph import Graph, Operator, graph_of

if TYPE_CHECKING:
    from ai_edge_litert.schema_py_generated import ModelT

BATCH = -1
Sizes = list[int]
"""What a vector of sizes holds: numbers, and BATCH for the open first axis."""


def fold_shapes(model: ModelT) -> None:
    """Do so in place, and take out the operators that nothing reads any more."""
    graph = graph_of(model)
    main = model.subgraphs[0]
    known = _known(model, graph)
    changed = False
    for operator in graph.operators:
        if operator.name != "RESHAPE" or len(operator.inputs) < 2:
            continue
        sizes = known.get(operator.inputs[1])
        if graph.tensors[operator.inputs[1]].data is None and sizes is not None and sizes.count(BATCH) == 1:
            inputs = list(operator.inputs)
            inputs[1] = _constant(model, f"{graph.node(operator)}/shape", sizes)
            main.operators[operator.index].inputs = inputs
            changed = True
    if changed:
        _drop_unread(model, graph)


def _known(model: ModelT, graph: Graph) -> Mapping[int, Sizes]:
    """The vectors of sizes that are known but for the batch, by tensor."""
    known: dict[int, Sizes] = {}
    for tensor in graph.tensors:
        if tensor.data is not None and tensor.data.dtype.kind == "i" and tensor.data.ndim < 2:
            known[tensor.index] = [int(one) for one in tensor.data.reshape(-1)]
    for operator in graph.operators:
        evaluate = EVALUATED.get(operator.name)
        if operator.name == "SHAPE":
            sizes = _shape(model, operator.inputs[0])
        elif evaluate is not None and all(index in known for index in operator.inputs):
            sizes = evaluate(operator, [known[index] for index in operator.inputs])
        else:
            continue
        if sizes is not None:
            known[operator.outputs[0]] = sizes
    return known


def _shape(model: ModelT, index: int) -> Sizes | None:
    tensor = model.subgraphs[0].tensors[index]
    sizes = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    if sizes is None or any(size < 0 for size in sizes[1:]):
        return None
    return [int(size) for size in sizes]


def _sliced(operator: Operator, inputs: Sequence[Sizes]) -> Sizes | None:
    vector, begin, end, strides = inputs
    options = operator.options
    if (
        len(begin) != 1
        or strides != [1]
        or options.ellipsisMask
        or options.newAxisMask
        or BATCH in (*begin, *end)
    ):
        return None
    start = 0 if options.beginMask else begin[0]
    if options.shrinkAxisMask:
        return [vector[start]]
    return vector[start : len(vector) if options.endMask else end[0]]


def _joined(operator: Operator, inputs: Sequence[Sizes]) -> Sizes | None:
    return [size for vector in inputs for size in vector]


def _product(operator: Operator, inputs: Sequence[Sizes]) -> Sizes | None:
    if any(BATCH in vector for vector in inputs) or (
        operator.name == "MUL" and len(inputs[0]) != len(inputs[1])
    ):
        return None
    if operator.name == "REDUCE_PROD":
        return [int(np.prod(inputs[0]))]
    return [a * b for a, b in zip(*inputs, strict=True)]


EVALUATED: Mapping[str, Callable[[Operator, Sequence[Sizes]], Sizes | None]] = {
    "STRIDED_SLICE": _sliced,
    "PACK": _joined,
    "CONCATENATION": _joined,
    "REDUCE_PROD": _product,
    "MUL": _product,
}
"""Operators whose results on such vectors are worked out."""


def _constant(model: ModelT, name: str, sizes: Sizes) -> int:
    from ai_edge_litert.schema_py_generated import BufferT, TensorT

    buffer, tensor = BufferT(), TensorT()
    buffer.data = np.array(sizes, np.int32).view(np.uint8)
    model.buffers.append(buffer)
    tensor.name, tensor.type, tensor.shape = name.encode(), 2, [len(sizes)]
    tensor.buffer, tensor.hasRank = len(model.buffers) - 1, True
    main = model.subgraphs[0]
    main.tensors.append(tensor)
    return len(main.tensors) - 1


def _drop_unread(model: ModelT, graph: Graph) -> None:
    """Take out operators that only work out sizes, and whose results are read by nothing that is kept."""
    main = model.subgraphs[0]
    read = set(main.outputs)
    kept = []
    for operator in reversed(graph.operators):
        found = main.operators[operator.index]
        works_out_sizes = operator.name == "SHAPE" or operator.name in EVALUATED
        if works_out_sizes and not read.intersection(operator.outputs):
            continue
        read.update(found.inputs)
        kept.append(found)
    main.operators = kept[::-1]
