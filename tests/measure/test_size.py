import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fewbits.errors import InputError
from fewbits.measure.size import artifact_bytes, artifact_files
from tests.engines.models import dense


def test_one_file(tmp_path):
    path = dense(tmp_path / "m.onnx")
    assert artifact_files(path) == (path,)
    assert artifact_bytes(path) == path.stat().st_size


def test_external_data_counts_once_per_file(tmp_path):
    path = dense(tmp_path / "m.onnx", layers=3)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert artifact_files(path) == (path, tmp_path / "weights.bin")
    assert artifact_bytes(path) == path.stat().st_size + 3 * 64 * 64 * 4


def test_external_data_inside_a_subgraph(tmp_path):
    def branch(name):
        constant = helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(np.ones(8, "f4"), name)
        )
        return helper.make_graph([constant], name, [], [helper.make_tensor_value_info(name, 1, [8])])

    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    inputs = [helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    graph = helper.make_graph([choose], "g", inputs, [helper.make_tensor_value_info("y", 1, [8])])
    options = {"all_tensors_to_one_file": False, "size_threshold": 0, "convert_attribute": True}
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx", save_as_external_data=True, **options)
    files = artifact_files(tmp_path / "m.onnx")
    assert len(files) == 3
    assert artifact_bytes(tmp_path / "m.onnx") == files[0].stat().st_size + 2 * 8 * 4


def test_openvino_keeps_weights_beside(tmp_path):
    (tmp_path / "m.xml").write_text("<net/>")
    (tmp_path / "m.bin").write_bytes(bytes(100))
    assert artifact_bytes(tmp_path / "m.xml") == 106


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_missing_file(suffix, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        artifact_bytes(tmp_path / f"m.{suffix}")


def test_missing_weights(tmp_path):
    path = dense(tmp_path / "m.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"m\.onnx keeps weights in .*weights\.bin, which is missing"):
        artifact_bytes(path)


def test_unreadable_onnx(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07garbage" * 20)
    with pytest.raises(InputError, match=r"m\.onnx is not a readable ONNX file"):
        artifact_bytes(tmp_path / "m.onnx")
