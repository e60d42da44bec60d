"""One plan, two formats: the same net as ONNX and as TensorFlow Lite gets the same codes and scales."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from fewbits.engines.cpu import cpu
from fewbits.engines.targets import targets
from fewbits.models.tflite.load import parse
from fewbits.models.tflite.types import INT8
from fewbits.planning.recipe import ResolvedRecipe, quantization_aware, write_recipe
from tests.lite import mnist
from tests.stages import write_files

SAMPLES = np.random.default_rng(5).standard_normal((64, 8, 8, 1)).astype(np.float32)


def constants(net) -> dict[str, np.ndarray]:
    model = parse(net.bytes(), "net")
    found = {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and tensor.name != b"shape":
            found[tensor.name.decode()] = np.frombuffer(bytes(data), np.float32).reshape(tuple(tensor.shape))
    return found


def as_onnx(net, path):
    """The same net with channels in front."""
    given = constants(net)
    dense = given["net/dense/kernel"].reshape(10, 3, 3, 12).transpose(0, 3, 1, 2).reshape(10, 108)
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N,1,8,8] image) => (float[N,10] logits) {
            c = Conv(image, kernel, bias)
            r = Relu(c)
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
            f = Flatten(p)
            logits = Gemm<transB = 1>(f, dense, dense_bias)
        }
        """
    )
    for name, array in (
        ("kernel", given["net/conv/kernel"].transpose(0, 3, 1, 2)),
        ("bias", given["net/conv/bias"]),
        ("dense", dense),
        ("dense_bias", given["net/dense/bias"]),
    ):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    onnx.save(model, path)
    return path


def of_onnx(path):
    """Codes and scales of weights, by their size; scales and zero points of activations."""
    graph = onnx.load(path).graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    weights, activations = {}, set()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        codes, scale = stored.get(node.input[0]), stored[node.input[1]]
        zero = stored[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(1, np.int8)
        if codes is None:
            activations.add((float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])))
        elif codes.dtype == np.int8:
            weights[codes.size] = codes, scale
    return weights, activations


def of_tflite(path):
    model = parse(path.read_bytes(), path)
    weights, activations = {}, set()
    for tensor in model.subgraphs[0].tensors:
        data, scheme = model.buffers[tensor.buffer].data, tensor.quantization
        if tensor.type != INT8 or scheme is None:
            continue
        if data is None:
            activations.add((float(scheme.scale[0]), int(scheme.zeroPoint[0]) + 128))
        else:
            codes = np.frombuffer(bytes(data), np.int8).reshape(tuple(tensor.shape))
            weights[codes.size] = codes, np.asarray(scheme.scale)
    return weights, activations


def output_step(path) -> float:
    """The scale of the codes that the file's last result has before it becomes floats."""
    model = parse(path.read_bytes(), path)
    graph = model.subgraphs[0]
    return float(graph.tensors[graph.operators[-1].inputs[0]].quantization.scale[0])


def test_the_same_plan_in_onnx_and_tflite(tmp_path):
    if targets("onnxruntime", cpu())[0].saturates:
        pytest.skip("this CPU's 8-bit sums saturate, so files for ONNX Runtime have weights of 7 bits")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(write_recipe(ResolvedRecipe(quantization_aware(8))))
    net = mnist()
    made, outputs = {}, {}
    for name, source, samples in (
        ("lite", net.save(tmp_path / "net.tflite"), SAMPLES),
        ("onnx", as_onnx(net, tmp_path / "net.onnx"), SAMPLES.transpose(0, 3, 1, 2)),
    ):
        (folder := tmp_path / name).mkdir()
        engine = {"lite": "litert", "onnx": "onnxruntime"}[name]
        files = write_files(source, {"image": samples}, str(recipe), folder, engine)
        (one,) = files.candidates
        made[name] = one.file.path
        outputs[name] = files.session(one).run({"image": np.ascontiguousarray(samples)})["logits"]
    (lite, lite_activations), (other, activations) = of_tflite(made["lite"]), of_onnx(made["onnx"])
    conv, dense = lite[12 * 9], lite[10 * 108]
    np.testing.assert_array_equal(other[12 * 9][0].reshape(12, 9), conv[0].reshape(12, 9))
    np.testing.assert_array_equal(other[12 * 9][1], conv[1])
    turned = dense[0].reshape(10, 3, 3, 12).transpose(0, 3, 1, 2).reshape(10, 108)
    theirs = other[10 * 108][0]
    np.testing.assert_array_equal(theirs if theirs.shape == (10, 108) else theirs.T, turned)
    np.testing.assert_array_equal(other[10 * 108][1], dense[1])
    assert len(activations) >= 2
    for (
        scale,
        zero_point,
    ) in activations:  # the ranges were observed in two engines, which differ in the last bit
        assert any(zero_point == z and np.isclose(scale, s, rtol=1e-6, atol=0) for s, z in lite_activations)
    step = output_step(made["lite"])
    assert np.abs(outputs["lite"] - outputs["onnx"]).max() <= step * 1.001
