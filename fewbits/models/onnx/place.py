"""Where QuantizeLinear and DequantizeLinear go, for layers that a recipe makes static int8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from fewbits.numerics import find
from fewbits.planning.plan import Edge, Placement, Site
from fewbits.planning.recipe import Assignment
from fewbits.planning.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

FIXED_RANGES = {"Softmax": (0.0, 1.0), "Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
"""Operators whose results are bounded whatever the data."""

RECTIFIERS = frozenset(("Relu", "Clip"))
"""Activations that engines fuse into the convolution before them, so that the range is taken behind them."""


def place(graph: ir.Graph, assigned: Iterable[Assignment], target: Target) -> Placement:
    """Choose the sites: inputs of static layers, and what else the engine needs to stay in int8 between them.

    Args:
        graph: the folded graph.
        assigned: what the recipe says of each layer.
        target: the engine's row of its capability table.
    """
    nodes = {node.name: node for node in graph}
    assigned = tuple(assigned)
    static = [a for a in assigned if a.activations is not None and not a.activations.dynamic]
    wanted = _Wanted()
    # Codes of fewer bits than kernels multiply gain nothing by staying codes between layers.
    on_codes = all(find(a.activations.qtype).bits == 8 for a in static if a.activations is not None)
    convolutions = [nodes[a.layer.node] for a in static if a.layer.kind == "conv" and on_codes]
    for a in static:
        if a.layer.kind == "matmul":  # attention: measured no faster on codes in any engine, and 2 dB worse
            continue
        for value, edge in _activation_inputs(nodes[a.layer.node], a):
            wanted.add(value, (edge,))
    if target.quantize_outputs:
        # A layer that was kept in float reads floats, whatever that costs the one before.
        floats = {a.layer.node for a in assigned if a.activations is None}
        for node in convolutions:
            value = _behind_rectifier(node.outputs[0])
            wanted.add(value, (edge for edge in _readers(value) if edge.node not in floats))
    if target.quantize_residuals:
        outputs = {_behind_rectifier(node.outputs[0]) for node in convolutions}
        for value, edge in _residual_inputs(graph, outputs):
            wanted.add(value, (edge,))
    for value in list(wanted.readers):
        _hoist(value, wanted, target)
    return wanted.placement(graph)


class _Wanted:
    """Requests collected by tensor; a tensor that several ask for gets one site."""

    def __init__(self) -> None:
        self.readers: dict[ir.Value, dict[Edge, None]] = {}
        self.range_of: dict[ir.Value, ir.Value] = {}
        self.through: dict[ir.Value, dict[Edge, None]] = {}

    def add(self, value: ir.Value, edges: Iterable[Edge]) -> None:
        self.readers.setdefault(value, {}).update(dict.fromkeys(edges))

    def placement(self, graph: ir.Graph) -> Placement:
        order = {value: i for i, value in enumerate(graph.inputs)}
        for node in graph:
            for value in node.outputs:
                order[value] = len(order)
        sites = []
        for value in sorted(self.readers, key=lambda v: order[v]):
            readers = tuple(self.readers[value])
            if readers:
                root = self.range_of.get(value, value)
                through = tuple(self.through.get(value, ()))
                fixed, divisible = _fixed_range(root), not _is_mean_beside_channels(value)
                sites.append(Site(value.name or "", readers, root.name or "", fixed, through, divisible))
        return Placement(tuple(sites))


def _fixed_range(value: ir.Value) -> tuple[float, float] | None:
    node = value.producer()
    return None if node is None else FIXED_RANGES.get(node.op_type)


def _is_mean_beside_channels(value: ir.Value) -> bool:
    """A mean over axes in front of the last, as of pooling where channels come last.

    OpenVINO (2026.4) makes a product behind it part of the mean, with factors along the wrong axis: of a MobileNetV2
    whose channels come last 2 dB were left.
    """
    from onnx_ir.convenience import get_const_tensor

    node = value.producer()
    if node is None or node.op_type != "ReduceMean" or node.inputs[0] is None:
        return False
    source, stored = node.inputs[0], node.attributes.get("axes")
    if stored is not None:
        axes = list(stored.as_ints())
    else:
        given = node.inputs[1] if len(node.inputs) > 1 else None
        constant = None if given is None else get_const_tensor(given)
        axes = [-1] if constant is None else constant.numpy().reshape(-1).tolist()
    last = None if source.shape is None else len(source.shape) - 1
    return not {-1, last}.intersection(axes)


def _activation_inputs(node: ir.Node, a: Assignment) -> Iterator[tuple[ir.Value, Edge]]:
    for index, value in enumerate(node.inputs):
        if value is not None and value.name in a.layer.inputs and value.const_value is None:
            yield value, Edge(node.name or "", index)


def _readers(value: ir.Value) -> tuple[Edge, ...]:
    return tuple(Edge(use.node.name or "", use.idx) for use in value.uses())


def _behind_rectifier(value: ir.Value) -> ir.Value:
    uses = tuple(value.uses())
    if len(uses) == 1 and uses[0].node.op_type in RECTIFIERS and not value.is_graph_output():
        return uses[0].node.outputs[0]
    return value


def _residual_inputs(graph: ir.Graph, outputs: set[ir.Value]) -> Iterator[tuple[ir.Value, Edge]]:
    """Inputs of an Add of two computed tensors where at least one comes from a static convolution."""
    for node in graph:
        if node.op_type != "Add" or any(v is None or v.const_value is not None for v in node.inputs):
            continue
        values = [v for v in node.inputs if v is not None]
        if any(v in outputs for v in values):
            for index, value in enumerate(values):
                yield value, Edge(node.name or "", index)


def _hoist(value: ir.Value, wanted: _Wanted, target: Target) -> None:
    """Quantize before operators that only move values (their output has their first input's range)."""
    chain = [value]
    while True:
        node = chain[-1].producer()
        source = node.inputs[0] if node is not None and node.inputs else None
        if node is None or source is None or source.const_value is not None:
            break
        if node.op_type not in target.moves_through:
            break
        if source.dtype is not None and source.dtype.name != "FLOAT":
            break
        chain.append(source)
    for below, above in pairwise(chain):
        mover = below.producer()
        assert mover is not None
        wanted.add(above, (Edge(mover.name or "", 0),))
        if target.repeat_after_layout:
            wanted.range_of[below] = chain[-1]
            wanted.readers.setdefault(below, {})
        else:
            wanted.through.setdefault(chain[-1], {}).update(wanted.readers[below])
            wanted.readers[below] = {}
