"""Bring a graph into the plain form that planning reads: constants folded, batch norm in the convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

LAYOUT_OPS = ("Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity")
OUTPUT_LIMIT = 1 << 18  # elements; larger constants computed from small ones would grow the file


def fold(model: ir.Model) -> ir.Model:
    """A copy in which constants are initializers, functions inlined, and batch norm part of its convolution.

    Inputs and outputs keep their names, dtypes and order. Weights are shared with the original, not copied,
    unless folding changes them.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common as rules

    copy = model.clone()
    passes.InlinePass()(copy)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    fold_constants(copy, should_fold=_should_fold, output_size_limit=OUTPUT_LIMIT)
    batch_norm = [
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
        rules.no_op_cast_rule,
    ]
    rewrite(copy, pattern_rewrite_rules=batch_norm)
    passes.IdentityEliminationPass()(copy)
    passes.RemoveUnusedNodesPass()(copy)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    passes.ShapeInferencePass()(copy)
    _name_nodes(copy.graph)
    return copy


def _should_fold(node: ir.Node) -> bool | None:
    """Always fold a layout change of a weight that nothing else uses: it costs no bytes. Else the size decides."""
    if node.op_type in LAYOUT_OPS and node.inputs and node.inputs[0] is not None:
        source = node.inputs[0]
        if source.const_value is not None:
            return True if len(source.uses()) == 1 else None
    return None


def _name_nodes(graph: ir.Graph) -> None:
    """Every node gets a name of its own, since plans refer to nodes by name."""
    taken: set[str] = set()
    for index, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        node.name = name
        taken.add(name)
