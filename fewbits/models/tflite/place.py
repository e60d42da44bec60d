"""Which operators run on integer codes, and where quantization goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fewbits.models.tflite.graph import Graph, Operator, Tensor
from fewbits.models.tflite.layers import KINDS, layer_inputs, layer_name
from fewbits.models.tflite.operators import MOVES_NO_FLOATS, OPERATORS
from fewbits.numerics import find
from fewbits.planning.model_info import FloatOnly
from fewbits.planning.plan import Edge, Placement, Site
from fewbits.planning.recipe import Assignment

KEEPS_VALUES = frozenset(
    ("MAX_POOL_2D", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "SLICE", "STRIDED_SLICE")
)
"""Operators behind which nothing is lost by clipping in front of them to the range that is wanted behind.

So the range is found from what comes out of them: of a convolution whose results are pooled only the largest count."""


def float_only(graph: Graph) -> tuple[FloatOnly, ...]:
    """The operators that keep a file from computing on integers alone, and with which activations."""
    found = []
    for operator in graph.operators:
        missing = tuple(f"int{bits}" for bits in (8, 16) if not _has_kernel(operator, graph, bits))
        if missing:
            found.append(FloatOnly(operator.name, layer_name(operator, graph), missing))
    return tuple(found)


def place(graph: Graph, assigned: Iterable[Assignment]) -> Placement:
    """Choose the sites: inputs and results of every operator that runs on codes.

    Layers do where the recipe makes them static. So does what has no weights, except behind an operator that runs in
    float: there it stays in float until the next layer.

    Args:
        graph: the main subgraph.
        assigned: what the recipe says of each layer.
    """
    assigned = tuple(assigned)
    schemes = {
        a.layer.node: a.activations
        for a in assigned
        if a.activations is not None and not a.activations.dynamic
    }
    if not schemes:
        return Placement(())
    # A table's rows are looked up as codes wherever the recipe does not keep them in float.
    layers = frozenset(a.layer.node for a in assigned if a.layer.kind != "embedding" or a.weights is None)
    bits = find(next(iter(schemes.values())).qtype).bits
    return _Placer(graph, bits, frozenset(schemes), layers).placement()


@dataclass(frozen=True)
class _Placer:
    """Works out for each tensor whose range its codes have: that tensor's index is called its root."""

    graph: Graph
    bits: int
    static: frozenset[str]
    layers: frozenset[str]

    def placement(self) -> Placement:
        sites = []
        for index, tensor in enumerate(self.graph.tensors):
            if not tensor.is_float:
                continue
            reading: dict[int, list[Edge]] = {}
            for edge, operator in self._readers[index]:
                reading.setdefault(self._root_read(operator, edge.index), []).append(edge)
            made = self.graph.producers.get(index)
            if made is not None and made in self._integer:
                reading = {self._root[index]: [], **reading}
            for root, edges in reading.items():
                source = self.graph.tensors[root]
                sites.append(Site(tensor.name, tuple(edges), source.name, self._fixed_range(source)))
        return Placement(tuple(sites))

    @cached_property
    def _integer(self) -> frozenset[Operator]:
        found: set[Operator] = set()
        behind_float: set[int] = set()
        for operator in self.graph.operators:
            node = self.graph.node(operator)
            if node in self.layers:
                runs = node in self.static and _has_kernel(operator, self.graph, self.bits)
            else:
                runs = operator.name in OPERATORS and _has_kernel(operator, self.graph, self.bits)
                runs = runs and not behind_float.intersection(operator.inputs)
            if runs and _activations(operator, self.graph):
                found.add(operator)
            else:
                behind_float.update(one.index for one in self.graph.results(operator))
        return frozenset(found)

    @cached_property
    def _readers(self) -> Mapping[int, list[tuple[Edge, Operator]]]:
        """Every reading of a float tensor as codes."""
        found: dict[int, list[tuple[Edge, Operator]]] = {
            index: [] for index in range(len(self.graph.tensors))
        }
        for operator in self.graph.operators:
            if operator in self._integer:
                for position, tensor in _activations(operator, self.graph, results=False):
                    found[tensor.index].append((Edge(self.graph.node(operator), position), operator))
        return found

    @cached_property
    def _wanted(self) -> Mapping[int, int]:
        """Whose range all readers of a tensor want it in: its own, unless they agree on another."""
        wanted: dict[int, int] = {}

        def of(index: int) -> int:
            return wanted.get(index, index)

        for operator in reversed(self.graph.operators):
            for index in {tensor.index for _, tensor in self.graph.floats(operator)}:
                asked = {index} if index in self.graph.outputs else set()
                for _, reader in self._readers[index]:
                    result = reader.outputs[0]
                    as_result = reader.name in KEEPS_VALUES or OPERATORS[reader.name].scales == "output"
                    asked.add(of(result) if as_result else index)
                wanted[index] = asked.pop() if len(asked) == 1 else index
        return wanted

    @cached_property
    def _root(self) -> Mapping[int, int]:
        root = {index: self._wanted.get(index, index) for index in range(len(self.graph.tensors))}
        for operator in self.graph.operators:
            if operator not in self._integer:
                for tensor in self.graph.results(operator):
                    root[tensor.index] = self._wanted.get(tensor.index, tensor.index)
                continue
            row = OPERATORS[operator.name]
            for tensor in self.graph.results(operator):
                if row.fixed_range(self.bits) is not None:
                    root[tensor.index] = tensor.index
                elif row.scales == "input":
                    root[tensor.index] = root[_activations(operator, self.graph, results=False)[0][1].index]
        return root

    def _root_read(self, operator: Operator, position: int) -> int:
        """Whose range the operator reads that input in."""
        row = OPERATORS[operator.name]
        if row.scales == "output":
            return self._root[operator.outputs[0]]
        if row.scales == "input":
            return self._root[_activations(operator, self.graph, results=False)[0][1].index]
        return self._root[operator.inputs[position]]

    def _fixed_range(self, source: Tensor) -> tuple[float, float] | None:
        if source.data is not None:
            finite = source.data[np.isfinite(source.data)]
            return (float(finite.min(initial=0.0)), float(finite.max(initial=0.0)))
        made = self.graph.producers.get(source.index)
        return (
            None if made is None or made not in self._integer else OPERATORS[made.name].fixed_range(self.bits)
        )


def _has_kernel(operator: Operator, graph: Graph, bits: int) -> bool:
    """Whether the operator computes on codes of that width, or on no floats at all."""
    if not _activations(operator, graph) or operator.name in MOVES_NO_FLOATS - {"CAST"}:
        return True
    row = OPERATORS.get(operator.name)
    if row is None or bits not in row.bits:
        return False
    if (kind := KINDS.get(operator.name)) is not None and kind.kind != "embedding":
        return layer_inputs(operator, graph) is not None  # weights and bias must be known
    return True


def _activations(operator: Operator, graph: Graph, results: bool = True) -> list[tuple[int, Tensor]]:
    """The float tensors that are codes where the operator runs on codes; weights and biases are not among them."""
    return list(_each(operator, graph, results))


def _each(operator: Operator, graph: Graph, results: bool) -> Iterator[tuple[int, Tensor]]:
    kind = KINDS.get(operator.name)
    is_layer = kind is not None and kind.kind != "embedding"
    for position, tensor in graph.floats(operator):
        if not is_layer or (kind is not None and position == kind.activation):
            yield position, tensor
    if results:
        yield from ((-1, tensor) for tensor in graph.results(operator))
