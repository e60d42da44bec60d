"""Products of compressed weights whose sums have an odd number of terms."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, get
from tests.stages import sqnr_db, write_files


@pytest.mark.parametrize("terms", [256, 257])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_gets_them_right(tmp_path, terms, precision):
    engine = get("openvino")
    if precision not in engine.precisions(cpu()):
        pytest.skip(f"OpenVINO has no {precision} on this CPU")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((terms, 64)).astype(np.float32)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in (("x", terms), ("y", 64))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    path = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    feeds = {"x": rng.standard_normal((32, terms)).astype(np.float32)}
    (one,) = write_files(path, feeds, "w8", tmp_path, engine="openvino").candidates
    got = engine.compile(one.file.path, EngineSettings("openvino", precision, 1)).run(feeds)
    assert sqnr_db({"y": feeds["x"] @ weight}, got) > 38
