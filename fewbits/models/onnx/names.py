"""What the tensors that a plan adds are called in a written file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.onnx.bodies import all_graphs, all_nodes
from fewbits.planning.plan import Plan, WeightPlan

if TYPE_CHECKING:
    import onnx_ir as ir


class Names:
    """Names that a graph does not have yet: the one asked for, with underscores behind it where it is taken."""

    def __init__(self, graph: ir.Graph) -> None:
        values = [value for node in all_nodes(graph) for value in node.outputs]
        for one in all_graphs(graph):
            values += [*one.inputs, *one.initializers.values()]
        self._taken = {value.name for value in values}

    def __call__(self, name: str) -> str:
        """The same for the same question, whenever it is asked."""
        while name in self._taken:
            name += "_"
        return name


def stems(plan: Plan) -> dict[tuple[str, str], str]:
    """By a layer's node and a weight's name: what the names of that weight's constants begin with.

    Layers that read the same weight share its constants where they hold the same codes; else each has its own.
    """
    first: dict[str, WeightPlan] = {}
    found = {}
    for layer in plan.layers:
        for weight in layer.weights:
            # Blocks of codes are a body's own: ONNX Runtime finds none of the graph's around it (1.31).
            apart = layer.inside and plan.form(layer, weight) == "dequantize"
            shared = not apart and _same(first.setdefault(weight.name, weight), weight)
            found[layer.node, weight.name] = weight.name if shared else f"{weight.name}_of_{layer.node}"
    return found


def _same(a: WeightPlan, b: WeightPlan) -> bool:
    if a is b:
        return True
    if a.codes is None or b.codes is None:
        return a.codes is b.codes and a.scheme.qtype == b.scheme.qtype and np.array_equal(a.values, b.values)
    layouts = [(q.qtype.name, q.channel_axis, q.group_size) for q in (a.codes, b.codes)]
    parts = [(q.codes, q.scale, q.zero_point, q.codebook) for q in (a.codes, b.codes)]
    return layouts[0] == layouts[1] and all(
        one is other or (one is not None and other is not None and bool((one == other).all()))
        for one, other in zip(*parts, strict=True)
    )
