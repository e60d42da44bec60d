"""Graphs inside a graph's nodes: the branches of If, the bodies of Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def all_nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """The graph's nodes and those of every body inside it, in order; what is inside a node comes behind it."""
    import onnx_ir as ir

    return iter(ir.traversal.RecursiveGraphIterator(graph))


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs that a node runs."""
    import onnx_ir as ir

    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def all_graphs(graph: ir.Graph) -> list[ir.Graph]:
    """The graph and every body inside it."""
    return [graph, *inside(graph)]


def inside(graph: ir.Graph | ir.Function) -> list[ir.Graph]:
    """Every body inside it."""
    return [body for node in all_nodes(graph) for body in bodies(node)]


def outer_nodes(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """By body, the node that runs it."""
    return {body: node for node in all_nodes(graph) for body in bodies(node)}


def lift_weights(graph: ir.Graph) -> None:
    """Constants of two axes and more become the outer graph's, where bodies read them: plans know weights by name.

    Engines read them there as fast as inside a body. Names must be unique in all of the graph.
    """
    for body in inside(graph):
        for name, value in list(body.initializers.items()):
            tensor = value.const_value
            if tensor is None or tensor.shape.rank() < 2 or value.is_graph_output() or value.is_graph_input():
                continue
            del body.initializers[name]
            graph.register_initializer(value)


def make_names_unique(graph: ir.Graph) -> None:
    """Every node gets a name of its own, and where there are bodies every tensor too: plans refer to them by name.

    ONNX lets branches side by side use the same names. The graph's own inputs and outputs keep theirs.
    """
    taken: set[str] = set()
    for index, node in enumerate(all_nodes(graph)):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)
    within = inside(graph)
    if not within:
        return
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    values += [value for body in within for value in (*body.inputs, *body.initializers.values())]
    values += [value for node in all_nodes(graph) for value in node.outputs]
    used: set[str] = set()
    for number, value in enumerate(dict.fromkeys(values)):
        if not value.name:  # an output that nothing reads
            continue
        name = value.name
        while name in used:
            name = f"{name}_{number}"
        value.name = name
        used.add(name)
