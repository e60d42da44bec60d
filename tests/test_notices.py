"""Data and models that leave rounding little to go by: handled, and told."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fewbits.methods.gptq import damped, damped_moment, find_floor, round_with_compensation
from tests.stages import sqnr_db, write_files
from tests.tiny import Tiny

LINEAR = Tiny(
    """g (float[N, 64] x) => (float[N, 32] y) {
        a = Gemm (x, w1, b1)
        b = Relu (a)
        y = Gemm (b, w2, b2)
    }""",
    {"w1": (64, 64), "b1": (64,), "w2": (64, 32), "b2": (32,)},
    {"x": ((64,), None)},
)
TIED = Tiny(
    LINEAR.text.replace("w2", "w1").replace("N, 32", "N, 64"),
    {"w1": (64, 64), "b1": (64,), "b2": (64,)},
    LINEAR.feeds,
)
SILENT = Tiny(
    """g (float[N, 64] x, float[N, 64] z) => (float[N, 32] y) {
        a = Gemm (x, w1, b1)
        b = Gemm (z, w2, b2)
        y = Add (a, b)
    }""",
    {"w1": (64, 32), "b1": (32,), "w2": (64, 32), "b2": (32,)},
    {"x": ((64,), None), "z": ((64,), None)},
)
SPARSE = Tiny(
    """g (float[N, 8] x) => (float[N, 8] y) {
        big = Constant <value_float = 3.0e38> ()
        any = ReduceMax <keepdims = 0> (x)
        loud = Greater (any, big)
        places = NonZero (loud)
        few = Reshape (places, flat)
        rows = Gather <axis = 0> (x, few)
        z = MatMul (rows, w1)
        total = ReduceSum <keepdims = 0> (z)
        a = MatMul (x, w2)
        y = Add (a, total)
    }""",
    {"w1": (8, 8), "w2": (8, 8)},
    {"x": ((8,), None)},
    {"flat": np.array([-1], np.int64)},
)
DEPTHWISE = Tiny(
    """g (float[N, 8, 6, 6] x) => (float[N, 8, 4, 4] y) {
        a = Conv (x, w1, b1)
        b = Relu (a)
        y = Conv <group = 8> (b, w2, b2)
    }""",
    {"w1": (8, 8, 1, 1), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,)},
    {"x": ((8, 6, 6), None)},
)


def told(path, data, folder, recipe="w8a8", engine="openvino"):
    """What the report would say, and how close the files are to the original on other data, dB."""
    files = write_files(path, data, recipe, folder, engine)
    return files, " ".join(files.run.notes)


def closeness(files, feeds):
    expected, checker = files.float_outputs(feeds), files.checker(feeds)
    assert all(checker.difference(one) is None for one in files.candidates)
    return min(sqnr_db(expected, files.session(one).run(feeds)) for one in files.candidates)


@pytest.mark.parametrize("recipe", ["w8a8", "w4"])
def test_a_single_sample(tmp_path, recipe):
    path = LINEAR.save(tmp_path / "m.onnx")
    files, notes = told(path, LINEAR.samples(1), tmp_path, recipe)
    assert "calibrated on a single sample" in notes
    assert "Gemm_0, Gemm_2" in notes.split("fewer rows of calibration data")[1]
    assert closeness(files, LINEAR.samples(32, seed=2)) > 8


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_activations_that_are_all_zero_stay_float(tmp_path, engine):
    path = SILENT.save(tmp_path / "m.onnx")
    feeds = SILENT.samples(64)
    files, notes = told(path, feeds | {"z": np.zeros_like(feeds["z"])}, tmp_path, engine=engine)
    assert "nothing but zeros in every calibration sample, so no range is known: Gemm_1" in notes
    reasons = {layer.name: layer.float_reason for layer in files.written[0].plan.layers}
    assert reasons == {"Gemm_0": None, "Gemm_1": "its input is zero for every sample"}
    assert closeness(files, SILENT.samples(32, seed=2)) > 25


def test_a_layer_that_no_sample_reaches(tmp_path):
    path = SPARSE.save(tmp_path / "m.onnx")
    files, notes = told(path, SPARSE.samples(16), tmp_path, engine="onnxruntime")
    name = next(layer.name for layer in files.run.model.info.layers if layer.weights[0].name == "w1")
    assert f"no calibration sample reaches these, whose weights are rounded to nearest: {name}" in notes
    reason = next(layer.float_reason for layer in files.written[0].plan.layers if layer.name == name)
    assert reason == "its input is reached by no sample"
    assert closeness(files, SPARSE.samples(16, seed=2)) > 25


def test_a_depthwise_layer_with_a_dead_channel(tmp_path):
    proto = DEPTHWISE.proto()
    for tensor in proto.graph.initializer:
        if tensor.name == "w2":
            array = numpy_helper.to_array(tensor).copy()
            array[5] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, "w2"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    files, notes = told(path, DEPTHWISE.samples(16), tmp_path)
    assert "channels of depthwise layers whose weights are all zero, 1 in all, stay zero" in notes
    assert closeness(files, DEPTHWISE.samples(16, seed=2)) > 30


@pytest.mark.parametrize("recipe", ["w8", "w4"])
def test_weights_that_two_layers_read(tmp_path, recipe):
    path = TIED.save(tmp_path / "m.onnx")
    files, notes = told(path, TIED.samples(32), tmp_path, recipe)
    assert (
        "weights that several layers read are rounded once, to nearest, for all of them: Gemm_0, Gemm_2"
        in notes
    )
    assert closeness(files, TIED.samples(16, seed=2)) > 12


def test_a_second_moment_that_is_not_positive_definite():
    moment = torch.eye(6)
    moment[0, 1] = moment[1, 0] = 1.5  # of no inputs
    fixed = damped(moment.clone())
    assert int(torch.linalg.cholesky_ex(fixed).info) == 0
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    codes = round_with_compensation(weight, fixed, weight.abs().amax(dim=1, keepdim=True) / 7, -7, 7)
    assert torch.isfinite(codes).all()


def test_the_damping_is_what_serves_other_inputs_best():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=draw)
    steps = weight.abs().amax(dim=1, keepdim=True) / 7
    mixing = torch.randn(32, 32, generator=draw)
    few, many = (torch.randn(count, 32, generator=draw) @ mixing for count in (24, 4000))
    others = torch.randn(4000, 32, generator=draw) @ mixing
    floors = [find_floor(weight, inputs, steps, (-7, 7), 0.0, False) for inputs in (few, many)]
    assert floors[0] > floors[1]

    def lost(floor):
        codes = round_with_compensation(weight, damped_moment(few, 0.0, False, floor), steps, -7, 7)
        return float((others @ (codes * steps - weight).T).square().sum())

    assert lost(floors[0]) < 0.9 * lost(0.001)
