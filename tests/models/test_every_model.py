"""Every kind of model, under every preset, in both engines: written, read back, run, and compared with the original."""

import onnx
import pytest

from tests.stages import sqnr_db, write_files
from tests.tiny import MODELS

LEAST_DB = {
    "fp16": 60,
    "bf16": 42,
    "w8": 36,
    "w4_g32": 13,
    "w8a8_dynamic": 30,
    "w8a8": 28,
    "w8a8_minmax": 28,
    "w8a8_percentile": 26,
    "w8a8_entropy": 22,
}
"""What each preset must keep of weights drawn from a normal distribution."""


CHAINS = ("gemm", "gemm_scaled", "shared", "transposed", "names_taken", "linear", "fixed_batch", "functions")
"""Int8 products of few rows one after the other, which OpenVINO 2026.4 gets wrong where the shape is fixed."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.save(folder / f"{name}.onnx") for name, tiny in MODELS.items()}


@pytest.mark.parametrize("preset", LEAST_DB)
@pytest.mark.parametrize("name", MODELS)
def test_written_read_back_and_right_in_both_engines(saved, tmp_path, name, preset):
    if preset.startswith("w8a8_") and preset != "w8a8_dynamic" and name not in ("conv_bn", "matmul_add"):
        pytest.skip("other ways of finding ranges change numbers only")
    if (name, preset) == ("batched_weight", "w4_g32"):
        pytest.skip("groups are for weights of two axes, which test_planning says")
    feeds = MODELS[name].samples(32)
    files = write_files(saved[name], feeds, preset, tmp_path)
    if name == "fixed_batch":
        feeds = {key: array[:4] for key, array in feeds.items()}
    expected = files.float_outputs(feeds)
    checker = files.checker(feeds)
    assert {one.settings.engine for one in files.candidates} == {"onnxruntime", "openvino"}
    for one in files.candidates:
        broken = name in CHAINS and preset.startswith("w8a8") and one.settings.engine == "openvino"
        if broken and name in ("fixed_batch", "gemm_scaled"):
            continue  # see test_engine_that_computes_something_else_is_found_out
        got = files.session(one).run(feeds)
        assert list(got) == list(expected)
        assert {key: array.dtype for key, array in got.items()} == {
            key: array.dtype for key, array in expected.items()
        }
        kept = sqnr_db(
            {key: array for key, array in expected.items() if array.dtype.kind == "f"},
            {key: array for key, array in got.items() if array.dtype.kind == "f"},
        )
        assert kept >= LEAST_DB[preset], one.name
        assert broken or checker.difference(one) is None, one.name
        assert interface(onnx.load(one.file.path)) == interface(onnx.load(saved[name]))


def interface(model):
    """Names, types and axes (dynamic ones by name) of inputs and outputs."""
    return [
        [
            (
                value.name,
                value.type.tensor_type.elem_type,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        ]
        for values in (model.graph.input, model.graph.output)
    ]
