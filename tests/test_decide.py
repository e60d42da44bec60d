"""Numbers of a plan, as they lie in the written file."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.stages import sqnr_db, write_files
from tests.tiny import MODELS

TINY_NORMAL = float(np.finfo(np.float32).tiny)


def shrunk(name, weight, factor, folder):
    """A tiny model with one weight multiplied, saved."""
    model = MODELS[name].proto()
    for tensor in model.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), weight)
            )
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


def biases(path):
    """The bias constants of every convolution and Gemm, by node: dtype and scale."""
    model = onnx.load(path)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            bias = node.input[2]
            source = made.get(bias)
            codes = constants[bias] if source is None else constants[source.input[0]]
            found[node.output[0]] = (codes.dtype, None if source is None else constants[source.input[1]])
    return found


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_bias_is_int32_with_the_scale_of_the_products(tmp_path, engine):
    path = MODELS["residual"].save(tmp_path / "m.onnx")
    for one in write_files(path, MODELS["residual"].samples(), "w8a8", tmp_path, engine).candidates:
        found = biases(one.file.path)
        scales = {plan.site.tensor: plan.scale for plan in one.file.plan.activations}
        assert len(found) == 3
        assert all(dtype == np.int32 for dtype, _ in found.values())
        first = one.file.plan.layers[0]
        np.testing.assert_allclose(
            found["a"][1], np.float32(scales["x"]) * first.weights[0].codes.scale.numpy(), rtol=1e-6
        )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_bias_whose_scale_would_be_denormal_stays_float(tmp_path, engine):
    path = shrunk("residual", "w2", 1e-37, tmp_path)
    samples = MODELS["residual"].samples()
    files = write_files(path, samples, "w8a8", tmp_path, engine)
    expected = files.float_outputs(samples)
    for one in files.candidates:
        found = biases(one.file.path)
        assert found["c"][0] == np.float32
        assert found["a"][0] == np.int32
        assert found["a"][1].min() >= TINY_NORMAL
        assert sqnr_db(expected, files.session(one).run(samples)) > 25
