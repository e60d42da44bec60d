"""Data and models that leave rounding little to go by: handled, and told."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import fewbits as fb
from fewbits import decide
from fewbits.methods.gptq import damped, damped_moment, find_floor, round_with_compensation
from fewbits.planning.recipe import PRESETS, ResolvedRecipe, Rule, write_recipe
from fewbits.planning.scheme import Scheme
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
    assert (
        f"no calibration sample reaches these, whose weights are rounded all the same, to nearest: {name}"
        in notes
    )
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
        "weights that several layers read are rounded once for all of them, to nearest: Gemm_0, Gemm_2"
        in notes
    )
    assert closeness(files, TIED.samples(16, seed=2)) > 12


def mine(folder, weights, **switches):
    """A recipe that gives all weights one scheme."""
    path = folder / "mine.toml"
    recipe = replace(PRESETS["w8"], name="mine", rules=(Rule("*", weights),), **switches)
    path.write_text(write_recipe(ResolvedRecipe(recipe)), encoding="utf-8")
    return str(path)


SOLID = Tiny(
    "g (float[N, 4, 3, 6, 6] x) => (float[N, 8, 2, 4, 4] y) { y = Conv (x, w) }",
    {"w": (8, 4, 2, 3, 3)},
    {"x": ((4, 3, 6, 6), None)},
)


@pytest.mark.parametrize(
    ("tiny", "weights", "why"),
    [
        (LINEAR, Scheme("int4", "channel"), "more than 32 inputs take too long in 4 bits: Gemm_0, Gemm_2"),
        (LINEAR, Scheme("int8", "channel", symmetric=False), "codes have a zero point: Gemm_0, Gemm_2"),
        (LINEAR, Scheme("binary", "channel"), "codes are signs: Gemm_0, Gemm_2"),
        (SOLID, Scheme("int4", "channel"), "a convolution has more than two axes of space: Conv_0"),
    ],
)
def test_weights_that_do_not_make_up_for_each_other(tmp_path, monkeypatch, tiny, weights, why):
    monkeypatch.setattr(decide, "MAX_COLUMNS", 32)
    path, recipe = tiny.save(tmp_path / "m.onnx"), mine(tmp_path, weights)
    _, notes = told(path, tiny.samples(16), tmp_path, recipe, "onnxruntime")
    assert f"weights do not make up for each other's errors where {why}" in notes


def test_protection_without_data(tmp_path, short_measuring):
    recipe, given = mine(tmp_path, Scheme("int8", "channel"), protect=True), LINEAR.save(tmp_path / "m.onnx")
    found = fb.compress(given, recipe=recipe, engine="onnxruntime", threads=1, out=tmp_path / "out")
    told = "recipe 'mine': without data, weights that large activations meet are not protected; give --data"
    assert told in found.report.notes


@pytest.mark.parametrize(
    ("tiny", "recipe", "name"), [(LINEAR, "w8", "Gemm_0"), (DEPTHWISE, "w8a8", "Conv_0")]
)
def test_inputs_that_hang_together(tmp_path, tiny, recipe, name):
    """More rows than inputs, but each of them a sum of three."""
    draw = np.random.default_rng(0)
    shape = tiny.feeds["x"][0]
    few = draw.standard_normal((300, *shape[1:], 3)) @ draw.standard_normal((3, shape[0]))
    feeds = {"x": np.moveaxis(few, -1, 1).astype(np.float32)}
    _, notes = told(tiny.save(tmp_path / "m.onnx"), feeds, tmp_path, recipe)
    assert name in notes.split("or inputs that hang together")[1]
    (tmp_path / "whole").mkdir()
    _, notes = told(tmp_path / "m.onnx", tiny.samples(300), tmp_path / "whole", recipe)
    assert "hang together" not in notes


@pytest.mark.parametrize(("tiny", "name"), [(LINEAR, "Gemm_0"), (DEPTHWISE, "Conv_0")])
def test_inputs_that_are_always_zero(tmp_path, tiny, name):
    feeds = tiny.samples(200)
    feeds["x"][:, 5] = 0
    path = tiny.save(tmp_path / "m.onnx")
    files, notes = told(path, feeds, tmp_path, "w8")
    assert "zero in all that calibration kept of them, 1 in all, say nothing of how their weights" in notes
    assert f"are to be rounded: {name}" in notes
    assert "hang together" not in notes
    weight = files.written[0].plan.layers[0].weights[0]
    axis = 1 if tiny is DEPTHWISE else 0
    found = weight.codes.dequantize().select(axis, 5)
    assert (
        found - torch.from_numpy(weight.values).select(axis, 5)
    ).abs().max() <= weight.codes.scale.max() / 2
    assert closeness(files, tiny.samples(16, seed=2)) > 30


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
