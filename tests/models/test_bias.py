"""A product of two axes and its bias become one Gemm."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from fewbits.models.onnx.fold import fold

RNG = np.random.default_rng(3)


def model(lines, given="N, 8", gives="N, 4", **constants):
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[{given}] x) => (float[{gives}] y) {{ {lines} }}"""
    made = parser.parse_model(text)
    for name, shape in constants.items():
        array = RNG.standard_normal(shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(made)
    return made


def folded(made):
    return ir.to_proto(fold(ir.from_proto(made)))


def run(made, *shape):
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("total", ["Add (m, b)", "Add (b, m)"])
@pytest.mark.parametrize("last", ["y = Identity (s)", "y = Relu (s)", "r = Relu (s) y = Add (r, s)"])
def test_both_orders_and_every_reader(total, last):
    before = model(f"m = MatMul (x, w) s = {total} {last}", w=(8, 4), b=(4,))
    after = folded(before)
    assert after.graph.node[0].op_type == "Gemm"
    assert not {"MatMul"} & {node.op_type for node in after.graph.node}
    np.testing.assert_allclose(run(after, 3, 8)["y"], run(before, 3, 8)["y"], rtol=1e-5, atol=1e-6)


def test_an_output_keeps_its_name_and_a_layer_its_own():
    before = model("m = MatMul (x, w) y = Add (m, b)", w=(8, 4), b=(4,))
    before.graph.node[0].name = "head/MatMul"
    after = folded(before)
    assert [(node.name, node.op_type, list(node.output)) for node in after.graph.node] == [
        ("head/MatMul", "Gemm", ["y"])
    ]
    np.testing.assert_allclose(run(after, 3, 8)["y"], run(before, 3, 8)["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("lines", "shapes"),
    [
        ("m = MatMul (x, w) y = Add (m, b)", {"w": (8, 4), "b": (1, 4)}),
        ("m = MatMul (x, w) y = Add (m, b)", {"w": (8, 4), "b": (1,)}),
        ("m = MatMul (x, w) n = MatMul (x, v) y = Add (m, n)", {"w": (8, 4), "v": (8, 4)}),
        ("m = MatMul (x, w) s = Add (m, b) y = Mul (m, s)", {"w": (8, 4), "b": (4,)}),
        ("m = MatMul (x, w) y = Sub (m, b)", {"w": (8, 4), "b": (4,)}),
        ("h = MatMul (x, w) m = MatMul (h, h) y = Add (m, b)", {"w": (8, 4), "b": (4,)}),
    ],
    ids=["a row", "a scalar", "a residual", "read twice", "subtracted", "two activations"],
)
def test_what_is_no_bias_stays(lines, shapes):
    before = model(lines, "4, 8", "4, 4", **shapes)
    after = folded(before)
    assert not {"Gemm"} & {node.op_type for node in after.graph.node}
    np.testing.assert_allclose(run(after, 4, 8)["y"], run(before, 4, 8)["y"], rtol=1e-5, atol=1e-6)


def test_tokens_stay_a_matmul():
    after = folded(model("m = MatMul (x, w) y = Add (m, b)", "N, 5, 8", "N, 5, 4", w=(8, 4), b=(4,)))
    assert [node.op_type for node in after.graph.node] == ["MatMul", "Add"]


def test_a_product_that_is_an_output_as_well_stays():
    before = model("m = MatMul (x, w) y = Add (m, b)", w=(8, 4), b=(4,))
    before.graph.output.append(onnx.helper.make_tensor_value_info("m", onnx.TensorProto.FLOAT, ["N", 4]))
    after = folded(before)
    assert [node.op_type for node in after.graph.node] == ["MatMul", "Add"]
    assert [one.name for one in after.graph.output] == ["y", "m"]
