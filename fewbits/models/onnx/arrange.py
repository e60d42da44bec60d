"""Compute the weights that a graph puts together from constants, as the gates of a recurrent layer in another order.

Exporters leave that to the engine: weights are cut into slices and joined again in front of the layer, which then seems
to have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbits.models.onnx.bodies import all_graphs, all_nodes, lift_weights, make_names_unique
from fewbits.models.onnx.codes import WEIGHTS
from fewbits.models.onnx.quiet import quiet

if TYPE_CHECKING:
    import onnx_ir as ir

ARRANGING = frozenset(
    (
        "Slice",
        "Concat",
        "Split",
        "Gather",
        "Transpose",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
    )
)
"""Operators whose results hold nothing but entries of their inputs."""


LARGE = 1024  # elements; a constant of fewer may be stored twice


def arranged(model: ir.Model) -> ir.Model:
    """A copy with such weights as constants, where the file does not grow by it; else the model itself."""
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants

    names = {node.outputs[0].name for node in _arranging(model.graph)}
    if not names:
        return model
    copy = model.clone()
    with quiet("onnxscript"):
        fold_constants(copy, should_fold=lambda node: True if node.outputs[0].name in names else None)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    passes.RemoveUnusedNodesPass()(copy)
    make_names_unique(copy.graph)
    lift_weights(copy.graph)
    passes.DeduplicateHashedInitializersPass()(copy)
    return copy if _bytes(copy.graph) <= _bytes(model.graph) else model


def _arranging(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that make layers' weights of constants which nothing else reads."""
    made = [
        chain
        for node in all_nodes(graph)
        if node.op_type in WEIGHTS
        for value in node.inputs[WEIGHTS[node.op_type]]
        if (chain := _made_by(value))
    ]
    every = {node for chain in made for node in chain}
    return {node for chain in made if all(_reads_alone(node, every) for node in chain) for node in chain}


def _made_by(value: ir.Value | None) -> list[ir.Node] | None:
    """The nodes that make this value of constants by rearranging them; None where others do as well."""
    if value is None or value.const_value is not None:
        return []
    node = value.producer()
    if node is None or node.op_type not in ARRANGING:
        return None
    found = [node]
    for one in node.inputs:
        before = _made_by(one)
        if before is None:
            return None
        found += before
    return found


def _reads_alone(node: ir.Node, readers: set[ir.Node]) -> bool:
    """Whether large constants that the node reads are read by none but these."""
    return all(
        use.node in readers
        for value in node.inputs
        if value is not None and value.const_value is not None and value.const_value.size > LARGE
        for use in value.uses()
    )


def _bytes(graph: ir.Graph) -> int:
    tensors = (value.const_value for one in all_graphs(graph) for value in one.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
