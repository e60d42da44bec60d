"""Tiny models for the engines, as text where the format allows."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

# Two inputs of different types, one open axis, and outputs that are one tensor under several names.
TWO_INPUTS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x, int64[N] row) => (float[N, 4] same, float[N, 4] sum, float[N, 4] again, float[N, 4] back)
{
    half = Relu(x)
    same = Identity(half)
    picked = Gather(x, row)
    sum = Add(picked, half)
    again = Identity(half)
    back = Identity(x)
}
"""

UNKNOWN_OPERATOR = """
<ir_version: 8, opset_import: ["" : 17, "no.such.domain" : 1]>
g (float[2, 4] x) => (float[2, 4] y) { y = no.such.domain.Frobnicate(x) }
"""


def save_text(text: str, path: Path) -> Path:
    onnx.save(parser.parse_model(text), path)
    return path


def dense(path: Path, rows: int | str = "N", size: int = 64, seed: int = 0, layers: int = 1) -> Path:
    """Square MatMuls with Relu between them: x [rows, size] -> y."""
    rng = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(rng.standard_normal((size, size)).astype(np.float32) / size**0.5, f"w{i}")
        for i in range(layers)
    ]
    nodes, tensor = [], "x"
    for i in range(layers):
        nodes.append(helper.make_node("MatMul", [tensor, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [tensor := f"r{i}" if i < layers - 1 else "y"]))
    return _save(nodes, weights, rows, size, path, opset=17, ir_version=8)


def weight_only(path: Path, size: int = 128, block: int = 32) -> tuple[Path, np.ndarray]:
    """A MatMul whose int8 weights have a scale per block of rows; with the weights in float64."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (size, size)).astype(np.int8)
    scale = (rng.random((size // block, size)) * 0.01 + 0.001).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scale, "scale")]
    return _save(nodes, weights, "N", size, path, 21, 10), codes * np.repeat(
        scale.astype(float), block, axis=0
    )


def _save(nodes, weights, rows, size, path, opset, ir_version):
    def info(name):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [rows, size])

    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], weights)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path
