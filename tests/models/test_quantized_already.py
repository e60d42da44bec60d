"""Models that come in quantized: their codes stay codes, so that nothing grows, and it is said."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fewbits.errors import InputError
from fewbits.models.model import open_model
from tests.stages import sqnr_db, write_files
from tests.tiny import MODELS, Tiny

FORMS = ("w8", "w4_g32", "w8a8_dynamic", "w8a8")


def compressed(tmp_path, tiny, recipe, engine="onnxruntime", exclude=()):
    """What a recipe makes of a tiny model."""
    (tmp_path / "first").mkdir()
    source = tiny.save(tmp_path / "model.onnx")
    files = write_files(source, tiny.samples(16), recipe, tmp_path / "first", engine, exclude)
    return files.candidates[0].file.path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["conv_bn", "gemm", "embedding", "attention", "lstm", "batched_weight"])
def test_what_holds_codes_only_is_refused(tmp_path, name, form, engine):
    if (name, form) == ("batched_weight", "w4_g32"):
        pytest.skip("groups are for weights of two axes")
    path = compressed(tmp_path, MODELS[name], form, engine)
    model = open_model(path)
    assert model.info.in_codes == len(
        [x for x in open_model(tmp_path / "model.onnx").info.layers if x.weights]
    )
    assert not [layer.name for layer in model.info.layers if layer.weights]
    (tmp_path / "second").mkdir()
    with pytest.raises(InputError, match=r"quantized already \(layers in integer codes: \d\)"):
        write_files(path, MODELS[name].samples(16), "w8", tmp_path / "second")


@pytest.mark.parametrize("second", ["fp16", "w8", "w4_g32", "w8a8"])
@pytest.mark.parametrize("form", FORMS)
def test_the_rest_of_a_partly_quantized_file_is_compressed_without_growth(tmp_path, form, second):
    tiny = MODELS["matmul_add"]
    path = compressed(tmp_path, tiny, form, exclude=["MatMul_3"])
    codes = stored_codes(path)
    assert codes
    (tmp_path / "second").mkdir()
    feeds = tiny.samples(16, seed=3)
    files = write_files(path, feeds, second, tmp_path / "second")
    assert "left as they came, in integer codes: 1 layer" in files.run.notes
    assert [layer.kind for layer in files.run.model.info.layers] == ["linear"]
    checker = files.checker(feeds)
    expected = files.float_outputs(feeds)
    for one in files.candidates:
        assert one.file.path.stat().st_size < 0.9 * path.stat().st_size
        kept = stored_codes(one.file.path)
        assert all(any(np.array_equal(a, b) for b in kept) for a in codes)
        assert sqnr_db(expected, files.session(one).run(feeds)) > 12
        assert checker.difference(one) is None


def stored_codes(path):
    narrow = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4)
    tensors = [t for t in onnx.load(path).graph.initializer if t.data_type in narrow and len(t.dims) > 1]
    return [numpy_helper.to_array(tensor).astype(np.int8) for tensor in tensors]


def test_weights_stored_in_16_bits_are_float_weights(tmp_path):
    """They are widened to be compressed: fewer bits than 16 are fewer bytes."""
    path = compressed(tmp_path, MODELS["matmul_add"], "fp16")
    model = open_model(path)
    assert model.info.in_codes == 0
    (tmp_path / "second").mkdir()
    files = write_files(path, MODELS["matmul_add"].samples(16), "w8", tmp_path / "second")
    assert all(one.path.stat().st_size < 0.7 * path.stat().st_size for one in files.written)


def test_integers_that_are_no_codes_are_folded(tmp_path):
    """Widening a shape, a count or a mask is arithmetic, which constants are folded through."""
    tiny = Tiny(
        """g (float[N, 32] x) => (float[N, 32] y) {
            m = Cast <to = 1> (count)
            h = Div (x, m)
            g = Mul (h, half)
            y = MatMul (g, w)
        }""",
        {"w": (32, 32)},
        {"x": ((32,), None)},
        {"count": np.arange(1, 33), "half": np.float32(0.5)},
    )
    model = open_model(tiny.save(tmp_path / "model.onnx"))
    assert "Cast" not in model.operators()
    assert model.info.in_codes == 0
    assert [layer.kind for layer in model.info.layers] == ["linear"]


def test_an_activation_scaled_by_codes_is_an_activation(tmp_path):
    """The product of two computed tensors stays one, whatever constant goes into either."""
    tiny = Tiny(
        """g (float[N, 4, 32] x) => (float[N, 4, 4] y) {
            wide = Cast <to = 1> (codes)
            a = Mul (x, wide)
            t = Transpose <perm = [0, 2, 1]> (x)
            y = MatMul (a, t)
        }""",
        {},
        {"x": ((4, 32), None)},
        {"codes": np.arange(-16, 16, dtype=np.int8)},
    )
    info = open_model(tiny.save(tmp_path / "model.onnx")).info
    assert [layer.kind for layer in info.layers] == ["matmul"]
    assert info.in_codes == 0
