"""Means over axes in front of the channels, as nets have them whose channels come last."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from fewbits.engines.engine import EngineSettings, get
from tests.stages import sqnr_db, write_files


def test_openvino_gets_what_follows_them_right(tmp_path):
    rng = np.random.default_rng(0)
    size = np.exp(rng.standard_normal(64)).astype(
        np.float32
    )  # channels differ, so that dividing them would help
    weight = (rng.standard_normal((64, 32)) / 8).astype(np.float32)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1, 2]), "axes")]
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 3, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    path = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    feeds = {"x": size * np.abs(rng.standard_normal((64, 3, 3, 64))).astype(np.float32)}
    files = write_files(path, feeds, "w8a8", tmp_path, engine="openvino")
    for one in files.candidates:
        got = get("openvino").compile(one.file.path, EngineSettings("openvino", "f32", 1)).run(feeds)
        assert sqnr_db(files.float_outputs(feeds), got) > 30
