"""Variances computed in one pass become variances computed in two."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewbits.models.onnx.fold import fold

RNG = np.random.default_rng(7)
SHAPE = (3, 10, 6)


def graph(opset, axes, keepdims, form, square, factor=1.0, second_axes=None, extra=()):
    """``E[x**2] - E[x]**2`` of the input ``x``, as ``variance``."""
    nodes, constants = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(array, name))
        return name

    def mean(value, name, axes):
        op = "ReduceMean" if form == "mean" else "ReduceSum"
        as_input = opset >= (18 if op == "ReduceMean" else 13)
        inputs = [value, constant(f"{name}_axes", np.array(axes, np.int64))] if as_input else [value]
        given = {} if as_input else {"axes": list(axes)}
        nodes.append(helper.make_node(op, inputs, [f"{name}_reduced"], keepdims=keepdims, **given))
        if form == "mean":
            return f"{name}_reduced"
        count = np.prod([SHAPE[axis] for axis in axes]) / factor
        number = np.array(count if form == "divided" else 1 / count, np.float32)
        inputs = [f"{name}_reduced", constant(f"{name}_count", number)]
        nodes.append(helper.make_node("Div" if form == "divided" else "Mul", inputs, [name]))
        return name

    def squared(value, name):
        second = constant(f"{name}_two", np.array(2, np.float32)) if square == "Pow" else value
        inputs = [value, second]
        nodes.append(helper.make_node(square, inputs, [name]))
        return name

    of_squares = mean(squared("x", "squares"), "of_squares", axes)
    of_values = squared(mean("x", "of_values", second_axes or axes), "mean_squared")
    nodes.append(helper.make_node("Sub", [of_squares, of_values], ["difference"]))
    nodes.append(helper.make_node("Relu", ["difference"], ["variance"]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("variance", *extra)]
    takes = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE[1:]])]
    made = helper.make_graph(nodes, "g", takes, outputs, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def folded(model):
    return ir.to_proto(fold(ir.from_proto(model)))


def run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [(1,), (-1,), (1, 2)])
@pytest.mark.parametrize(
    ("form", "square"), [("mean", "Mul"), ("mean", "Pow"), ("scaled", "Mul"), ("divided", "Pow")]
)
def test_the_same_variance_without_cancellation(opset, keepdims, axes, form, square):
    model = graph(opset, axes, keepdims, form, square)
    after = folded(model)
    x = RNG.standard_normal(SHAPE).astype(np.float32)
    expected = x.astype(np.float64).var(axis=axes, keepdims=bool(keepdims))
    np.testing.assert_allclose(run(after, x), expected, rtol=1e-5)
    far = x + np.float32(3000)  # its squares need 24 bits: float32 has no bit left for the difference
    exact = far.astype(np.float64).var(axis=axes, keepdims=bool(keepdims))
    assert np.abs(run(model, far) / exact - 1).max() > 0.005
    np.testing.assert_allclose(run(after, far), exact, rtol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"form": "scaled", "factor": 1.5},
        {"second_axes": (2,), "keepdims": 1, "axes": (1,)},
        {"extra": ("of_squares_reduced",)},
        {"extra": ("difference",)},
    ],
)
def test_what_is_no_variance_or_read_elsewhere_stays(change):
    model = graph(**({"opset": 13, "axes": (1,), "keepdims": 0, "form": "mean", "square": "Mul"} | change))
    after = folded(model)
    assert sum(node.op_type == "Sub" for node in after.graph.node) == 1
    x = RNG.standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(run(after, x), run(model, x))
