import io
import json
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from rich.console import Console

import fewbits as fb
from fewbits.decide import decide
from fewbits.engines.cpu import cpu
from fewbits.engines.targets import targets
from fewbits.errors import InputError
from fewbits.inspection import SHOWN_LAYERS, inspect, stored_bytes
from fewbits.models.model import open_model
from fewbits.numerics import quantize
from fewbits.planning.model_info import WeightInfo
from fewbits.planning.recipe import PRESETS, assign
from fewbits.planning.scheme import Scheme

RNG = np.random.default_rng(0)


def network(path, size=64, layers=1, weight=None):
    """MatMuls with Relu between them: x [N, size] -> y."""
    nodes, constants, tensor = [], [], "x"
    for i in range(layers):
        values = (
            RNG.standard_normal((size, size)).astype(np.float32) / size**0.5 if weight is None else weight
        )
        constants.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [tensor, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [tensor := "y" if i == layers - 1 else f"r{i}"]))
    return save(nodes, constants, size, path)


def save(nodes, constants, size, path):
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def shown(found) -> str:
    out = io.StringIO()
    found.show(Console(file=out, width=100, color_system=None))
    return out.getvalue()


def test_what_is_in_a_small_model(tmp_path):
    weight = np.full((64, 64), 0.5, np.float32)
    weight[0, 0], weight[1, 1] = -8.0, 2.0
    path = network(tmp_path / "m.onnx", weight=weight)
    found = fb.inspect(path)
    assert (found.format, found.opset, found.params, found.size_bytes) == (
        "onnx",
        17,
        4096,
        path.stat().st_size,
    )
    assert [str(port.shape) for port in found.inputs + found.outputs] == ["('N', 64)"] * 2
    assert found.operators == {"MatMul": 1, "Relu": 1}
    assert found.bytes_by_dtype == {"float": 4 * 4096}
    (layer,) = found.layers
    assert (layer.op, layer.shape, layer.params, layer.bytes) == ("MatMul", (64, 64), 4096, 16384)
    mean = (4094 * 0.5 + 10) / 4096
    assert (layer.minimum, layer.maximum) == (-8.0, 2.0)
    assert layer.abs_mean == pytest.approx(mean)
    assert layer.outlier_ratio == pytest.approx(8 / mean)
    assert found.share_in_layers == pytest.approx(16384 / path.stat().st_size)
    assert found.few_bits_bytes == 0


def test_json_round_trips_without_nan(tmp_path):
    found = inspect(network(tmp_path / "m.onnx", weight=np.zeros((64, 64), np.float32)))
    assert found.layers[0].outlier_ratio is None
    text = found.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert type(found).model_validate_json(text) == found


@pytest.mark.parametrize("recipe", ["fp16", "w8", "w4_g32", "w8a8_dynamic"])
def test_could_give_is_what_is_written(tmp_path, recipe):
    path = network(tmp_path / "m.onnx", size=256, layers=2)
    expected = next(one for one in inspect(path).could_give if one.recipe == recipe)
    model, preset, (target,) = open_model(path), PRESETS[recipe], targets("onnxruntime", cpu())
    assigned = assign(preset, model.info)
    plan = decide(preset, assigned, model.place(assigned, target), None, target, model.weight)
    model.write(plan, tmp_path / "written.onnx")
    written = (tmp_path / "written.onnx").stat().st_size
    # What the arithmetic leaves out is the operators that are added, here some hundred bytes each.
    assert expected.size_bytes <= written <= expected.size_bytes + 3000
    assert expected.size_ratio == pytest.approx(expected.size_bytes / path.stat().st_size)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("int8", per="channel"),
        Scheme("int8"),
        Scheme("int4", per="group", group_size=32),
        Scheme("uint4", per="group", group_size=16, symmetric=False),
    ],
    ids=str,
)
def test_stored_bytes_are_those_of_the_tensor_that_is_made(scheme):
    weight = WeightInfo("w", (96, 10), channel_axis=1, group_axis=0)
    values = torch.from_numpy(RNG.standard_normal(weight.shape).astype(np.float32))
    made = quantize(
        values,
        scheme.qtype,
        channel_axis=None if scheme.per == "tensor" else weight.channel_axis,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
    )
    assert stored_bytes(weight, scheme) == made.nbytes


def test_codes_of_fewer_than_4_bits_lie_in_4():
    weight = WeightInfo("w", (96, 10), channel_axis=1, group_axis=0)
    sizes = {stored_bytes(weight, Scheme(qtype)) for qtype in ("int4", "int3", "int2", "ternary")}
    assert sizes == {96 * 10 // 2 + 4}


def test_every_preset_says_what_it_needs_and_who_gains(tmp_path):
    found = {one.recipe: one for one in inspect(network(tmp_path / "m.onnx", size=128)).could_give}
    assert list(found) == list(PRESETS)
    assert found["w8a8"].needs == "needs calibration data (--data FILE)"
    assert found["w4_g128"].needs == "needs no data, closer with some"
    assert found["w4_g64_hqq"].needs == "needs no data"
    engines = {recipe: {name for gain in one.gains for name in gain.engines} for recipe, one in found.items()}
    assert engines["w8a8"] == {"onnxruntime", "openvino"}
    assert engines["w8a8_dynamic"] == {"onnxruntime"}


def test_a_preset_that_does_not_fit_says_why(tmp_path):
    found = {one.recipe: one for one in inspect(network(tmp_path / "m.onnx", size=64)).could_give}
    assert found["w4_g128"].size_bytes is None
    assert "does not divide" in found["w4_g128"].why_not
    assert found["w4_g32"].why_not is None


def test_a_preset_that_no_engine_gains_by_says_so(tmp_path):
    found = {one.recipe: one for one in inspect(network(tmp_path / "m.onnx", size=128, layers=3)).could_give}
    assert found["w8a16"].why_not == "onnxruntime has no kernels for 16-bit activations"
    assert not found["w8a16"].gains
    assert found["w4"].why_not is None
    assert not found["w4"].gains
    assert all("brought back to float, so not faster" in gain.what for gain in found["w4a4"].gains)
    assert all("faster" in gain.what and "not faster" not in gain.what for gain in found["w4a8"].gains)


def test_a_model_without_layers_is_shown_all_the_same(tmp_path):
    path = save([helper.make_node("Relu", ["x"], ["y"])], [], 4, tmp_path / "m.onnx")
    found = inspect(path)
    assert (found.layers, found.params, found.share_in_layers) == ((), 0, 0)
    assert all("nothing to quantize" in one.why_not for one in found.could_give)
    assert "constants: none" in shown(found)


def test_weights_stored_in_16_bits_are_counted_as_stored(tmp_path):
    half = numpy_helper.from_array(RNG.standard_normal((64, 64)).astype(np.float16), "h")
    nodes = [
        helper.make_node("Cast", ["h"], ["w"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = save(nodes, [half], 64, tmp_path / "m.onnx")
    found = inspect(path)
    sizes = {one.recipe: one.size_bytes for one in found.could_give}
    assert found.share_in_layers == pytest.approx(8192 / path.stat().st_size)
    assert sizes["fp16"] == path.stat().st_size
    assert sizes["w8"] == path.stat().st_size - 8192 + 4096 + 4 * 64


def test_a_file_that_has_few_bits_already_is_said_to(tmp_path):
    codes = numpy_helper.from_array(RNG.integers(-127, 128, (64, 64)).astype(np.int8), "codes")
    scale = numpy_helper.from_array(np.float32(0.01), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    found = inspect(save(nodes, [codes, scale], 64, tmp_path / "m.onnx"))
    assert found.few_bits_bytes == 4096
    assert all(one.why_not and not one.gains for one in found.could_give)
    assert "4.10 kB of its constants have 8 bits or fewer already" in shown(found)


def test_many_layers_do_not_flood_the_terminal(tmp_path):
    found = inspect(network(tmp_path / "m.onnx", size=16, layers=400))
    text = shown(found)
    assert len(found.layers) == len(json.loads(found.to_json())["layers"]) == 400
    assert f"and {400 - SHOWN_LAYERS} more" in text
    assert len(text.splitlines()) < 90
    assert max(map(len, text.splitlines())) <= 100


def test_the_bytes_are_shared_out_without_gaps(tmp_path):
    found = inspect(network(tmp_path / "m.onnx", layers=3))
    assert math.isclose(found.share_in_layers * found.size_bytes, sum(layer.bytes for layer in found.layers))


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        inspect(tmp_path / "missing.onnx")
    weight = np.ones((64, 64), np.float32)
    weight[3, 5] = np.nan
    with pytest.raises(InputError, match=r"'w0' has nan at index \[3, 5\]"):
        inspect(network(tmp_path / "nan.onnx", weight=weight))
