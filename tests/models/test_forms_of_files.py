"""The same models in other forms of file: opsets, weights as inputs or Constant nodes, external data, branches."""

import onnx
import pytest
from onnx import version_converter

from fewbits.measure.size import artifact_bytes
from fewbits.models.model import open_model
from tests.models.test_every_model import LEAST_DB, interface
from tests.stages import sqnr_db, write_files
from tests.tiny import MODELS

PRESETS = ("fp16", "bf16", "w8", "w4_g32", "w8a8_dynamic", "w8a8")


def check(path, feeds, preset, folder):
    files = write_files(path, feeds, preset, folder)
    expected = files.float_outputs(feeds)
    floats = {key: array for key, array in expected.items() if array.dtype.kind == "f"}
    assert files.candidates
    for one in files.candidates:
        got = files.session(one).run(feeds)
        assert list(got) == list(expected)
        assert sqnr_db(floats, {key: got[key] for key in floats}) >= LEAST_DB[preset], one.name
        written = onnx.load(one.file.path)
        onnx.checker.check_model(one.file.path)
        assert interface(written) == interface_without_weights(onnx.load(path))
        assert artifact_bytes(one.file.path) < artifact_bytes(path)
    return files


def interface_without_weights(model):
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs, outputs = interface(model)
    return [[one for one in inputs if one[0] not in weights], outputs]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("name", ["conv_bn", "matmul_add", "embedding", "several"])
def test_opset(tmp_path, name, opset, preset):
    path = MODELS[name].save(tmp_path / "model.onnx", opset)
    files = check(path, MODELS[name].samples(16), preset, tmp_path)
    written = onnx.load(files.candidates[0].file.path)
    opset_now = next(one.version for one in written.opset_import if one.domain == "")
    blocks = any(a.name == "block_size" for node in written.graph.node for a in node.attribute)
    assert opset_now == max(opset, 21 if blocks else 13 if preset in ("bf16", "w8a8") else 0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("opset", [7, 9])
def test_old_opset(tmp_path, opset, preset):
    path = MODELS["matmul_add"].save(tmp_path / "model.onnx", opset)
    check(path, MODELS["matmul_add"].samples(16), preset, tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_new_opset(tmp_path, preset):
    proto = version_converter.convert_version(MODELS["conv_bn"].proto(21), 23)
    proto.ir_version = 11
    onnx.save(proto, tmp_path / "model.onnx")
    check(tmp_path / "model.onnx", MODELS["conv_bn"].samples(16), preset, tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["conv_bn", "embedding", "several"])
def test_weights_listed_as_inputs(tmp_path, name, preset):
    onnx.save(MODELS[name].proto(as_inputs=True), tmp_path / "model.onnx")
    check(tmp_path / "model.onnx", MODELS[name].samples(16), preset, tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_external_data(tmp_path, preset):
    onnx.save(
        MODELS["matmul_add"].proto(),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    model = open_model(tmp_path / "model.onnx")
    assert model.size_bytes == sum((tmp_path / name).stat().st_size for name in ("model.onnx", "weights.bin"))
    check(tmp_path / "model.onnx", MODELS["matmul_add"].samples(16), preset, tmp_path)


def test_external_data_counts_in_the_checksum(tmp_path):
    checksums = set()
    for seed in (0, 1):
        onnx.save(
            MODELS["linear"].proto(seed=seed),
            tmp_path / "model.onnx",
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
        )
        checksums.add(open_model(tmp_path / "model.onnx").sha256)
        (tmp_path / "weights.bin").unlink()
    assert len(checksums) == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_in_constant_nodes(tmp_path, preset):
    proto = MODELS["matmul_add"].proto()
    for tensor in list(proto.graph.initializer):
        constant = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        proto.graph.node.insert(0, constant)
        proto.graph.initializer.remove(tensor)
    onnx.save(proto, tmp_path / "model.onnx")
    check(tmp_path / "model.onnx", MODELS["matmul_add"].samples(16), preset, tmp_path)


def test_batch_norm_is_folded_exactly(tmp_path):
    path = MODELS["conv_bn"].save(tmp_path / "model.onnx")
    model = open_model(path)
    assert "BatchNormalization" in {node.op_type for node in onnx.load(path).graph.node}
    assert "BatchNormalization" not in model.operators()
    files = write_files(path, MODELS["conv_bn"].samples(16), "w8", tmp_path)
    model.tapped([], tmp_path / "folded.onnx")
    feeds = MODELS["conv_bn"].samples(16)
    from fewbits.engines.onnxruntime_engine import literal_session

    folded = literal_session(tmp_path / "folded.onnx", 1).run(feeds)
    assert sqnr_db(files.float_outputs(feeds), folded) > 100


def test_original_file_is_left_alone(tmp_path):
    path = MODELS["conv_bn"].save(tmp_path / "model.onnx")
    before = path.read_bytes()
    write_files(path, MODELS["conv_bn"].samples(16), "w8a8", tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("preset", ["w8", "w4_g32", "w8a8_dynamic", "w8a8"])
def test_the_same_bytes_every_time(tmp_path, preset):
    path = MODELS["conv_bn"].save(tmp_path / "model.onnx")
    written = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        files = write_files(path, MODELS["conv_bn"].samples(32), preset, tmp_path / run)
        written.append([one.path.read_bytes() for one in files.written])
    assert written[0] == written[1]
