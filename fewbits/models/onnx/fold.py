"""Bring a graph into the plain form that planning reads: constants folded, batch norm in the convolution, a
bias in its Gemm.

What narrow floats would ruin is written so that they do not (see ``variance``)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from fewbits.errors import InputError
from fewbits.models.onnx.arrange import arranged
from fewbits.models.onnx.bias import bias_into_gemm
from fewbits.models.onnx.bodies import all_graphs, inside, lift_weights, make_names_unique
from fewbits.models.onnx.codes import brings_back
from fewbits.models.onnx.constants import constant
from fewbits.models.onnx.opset import raise_opset
from fewbits.models.onnx.quiet import quiet
from fewbits.models.onnx.variance import two_pass_variance

if TYPE_CHECKING:
    import onnx_ir as ir

LAYOUT_OPS = ("Transpose", "Reshape", "Cast", "Squeeze", "Unsqueeze", "Identity")
OLD_OPSET, RAISED_OPSET = 11, 13
OUTPUT_LIMIT = 1 << 18  # elements; larger constants computed from small ones would grow the file


def fold(model: ir.Model) -> ir.Model:
    """A copy in which constants are initializers, functions inlined, and batch norm part of its convolution.

    Names are unique in the graph and all that its nodes run inside. Inputs and outputs keep their names, dtypes and
    order. Weights are shared with the original, not copied, unless folding changes them.
    """
    import onnx_ir.passes.common as passes
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common as rules

    copy = model.clone()
    if copy.graph.opset_imports[""] < OLD_OPSET:
        # Quantizing operators came later; a graph that has them cannot be raised to where they are known.
        with contextlib.suppress(InputError):
            raise_opset(copy, RAISED_OPSET)
    passes.InlinePass()(copy)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    with quiet("onnxscript"):  # what it cannot compute stays as it is
        fold_constants(copy, should_fold=_should_fold, output_size_limit=OUTPUT_LIMIT)
    batch_norm = [
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
        rules.no_op_cast_rule,
    ]
    rewrite(copy, pattern_rewrite_rules=batch_norm)
    if not any(True for _ in copy.graph.subgraphs()):
        # In a branch it would return an outer value, which ONNX forbids, and give that the branch's name for it.
        passes.IdentityEliminationPass()(copy)
    passes.RemoveUnusedNodesPass()(copy)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    copy = copy.clone()  # without readers in branches that are never taken, which are gone
    for graph in all_graphs(copy.graph):
        for node in graph:
            if node.op_type == "Gemm":
                _plain_gemm(graph, node)
    make_names_unique(copy.graph)
    if inside(copy.graph):
        lift_weights(copy.graph)
        passes.DeduplicateHashedInitializersPass()(copy)
    copy = arranged(copy)
    passes.ShapeInferencePass()(copy)
    if sum(map(two_pass_variance, all_graphs(copy.graph))):
        passes.RemoveUnusedNodesPass()(copy)
        passes.ShapeInferencePass()(copy)
    bias_into_gemm(copy.graph)
    make_names_unique(copy.graph)
    return copy


def _should_fold(node: ir.Node) -> bool | None:
    """Always fold a layout change of a weight that nothing else uses: it costs no bytes. Else the size decides.

    Never bring integer codes back: a file that is quantized already would grow to its float size.
    """
    if brings_back(node):
        return False
    if node.op_type in LAYOUT_OPS and node.inputs and node.inputs[0] is not None:
        source = node.inputs[0]
        if source.const_value is not None:
            return True if len(source.uses()) == 1 else None
    return None


def _plain_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """Take the factors into the constants, and turn both sides before: what is left is ``x @ w + b``.

    ONNX Runtime multiplies with blocks of int4 so, and 500 times slower where the weight is turned by the node.
    """
    import numpy as np
    import onnx_ir as ir

    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return
    for index, attribute in ((1, "alpha"), (2, "beta")):
        found = node.attributes.get(attribute)
        value = node.inputs[index] if index < len(node.inputs) else None
        if found is not None and found.as_float() != 1 and value is not None:
            node.replace_input_with(index, _times(graph, node, value, found.as_float()))
        if found is not None:
            del node.attributes[attribute]
    weight, turned = node.inputs[1], node.attributes.get("transB")
    assert weight is not None and weight.const_value is not None
    if turned is not None and turned.as_int() and len(weight.uses()) == 1:
        del node.attributes["transB"]
        array = np.ascontiguousarray(weight.const_value.numpy().T)
        weight.const_value, weight.shape = ir.tensor(array, name=weight.name), ir.Shape(array.shape)
    turned, value = node.attributes.get("transA"), node.inputs[0]
    if turned is not None and turned.as_int() and value is not None:
        del node.attributes["transA"]
        result = ir.Value(name=f"{value.name}_turned_for_{node.outputs[0].name}", type=value.type)
        graph.insert_before(node, ir.node("Transpose", [value], {"perm": [1, 0]}, outputs=[result]))
        node.replace_input_with(0, result)


def _times(graph: ir.Graph, node: ir.Node, value: ir.Value, factor: float) -> ir.Value:
    """``value`` times ``factor``: a constant of its own, or what a Mul in front of the node computes."""
    import numpy as np
    import onnx_ir as ir

    name = f"{value.name}_times_{factor:g}_for_{node.outputs[0].name}"
    if value.const_value is not None:
        array = value.const_value.numpy()
        return constant(graph, name, (array * np.array(factor, array.dtype)))
    assert value.dtype is not None
    scalar = constant(graph, f"{name}_factor", np.array(factor, value.dtype.numpy()))
    result = ir.Value(name=name, type=value.type, shape=value.shape)
    graph.insert_before(node, ir.node("Mul", [value, scalar], outputs=[result]))
    return result
