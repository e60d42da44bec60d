"""Rescaled channels in ONNX graphs: the same function, in forms that engines run, and closer at 8 bits."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fewbits.models.model import open_model
from fewbits.planning.equalization import Rescaling
from fewbits.planning.recipe import PRESETS, ResolvedRecipe, write_recipe
from tests.stages import sqnr_db, write_files
from tests.tiny import Tiny

WEIGHTS = {
    "w1": (16, 3, 1, 1),
    "b1": (16,),
    "depthwise": (16, 1, 3, 3),
    "b2": (16,),
    "w3": (24, 16, 1, 1),
    "b3": (24,),
    "w4": (10, 24),
    "b4": (10,),
}


def net(rectifier="Relu ({0})", behind="", weights=WEIGHTS):
    """Pointwise, depthwise, pointwise, pooled, linear; the first two with that rectifier behind them."""
    first, second = (rectifier.format(name) for name in "ac")
    return Tiny(
        f"""g (float[N, 3, 8, 8] x) => (float[N, 10] logits) {{
            zero = Constant <value_float = 0.0> ()
            six = Constant <value_float = 2.5> ()
            a = Conv (x, w1, b1)
            b = {first}
            c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, depthwise, b2)
            d = {second}
            {behind}
            e = Conv ({"h" if behind else "d"}, w3, b3)
            f = Relu (e)
            p = GlobalAveragePool (f)
            q = Flatten (p)
            logits = Gemm <transB = 1> (q, w4, b4)
        }}""",
        weights,
        {"x": ((3, 8, 8), None)},
    )


def uneven(tiny, path, spread=300.0, **changed):
    """The net with every other channel in front of the depthwise layer ``spread`` times as large."""
    model = tiny.proto()
    factors = np.where(np.arange(16) % 2, 1, spread).astype(np.float32)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        by = {"w1": factors, "b1": factors, "depthwise": 1 / factors}.get(tensor.name, np.ones(1, np.float32))
        array = changed.get(tensor.name, lambda one: one)(array * by.reshape(-1, *[1] * (array.ndim - 1)))
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    onnx.save(model, path)
    return path


def run(model, path, feeds):
    import onnxruntime as ort

    model.tapped((), path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize(
    ("tiny", "bounded"),
    [
        (net(), [False, False, False]),
        (net("LeakyRelu ({0})"), [False, False, False]),
        (net("Clip ({0}, zero, six)"), [True, True, False]),
        (net(behind="h = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)"), [False] * 3),
        (net(behind="h = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (d)"), [False] * 3),
    ],
)
def test_the_graph_computes_what_it_did(tmp_path, tiny, bounded):
    model = open_model(tiny.save(tmp_path / "m.onnx"))
    links = model.info.links
    assert [link.bounded for link in links] == bounded
    rng = np.random.default_rng(0)
    found = [
        Rescaling(link, rng.uniform(0.01, 30, link.channels).astype(np.float32), np.zeros(link.channels), 9.0)
        for link in links
    ]
    feeds = tiny.samples(16)
    expected = run(model, tmp_path / "a.onnx", feeds)
    scaled = model.rescaled(found)
    got = run(scaled, tmp_path / "b.onnx", feeds)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(scaled.weight("w1"), model.weight("w1"))
    assert scaled.info.layers[0].name == model.info.layers[0].name


def test_biases_move_to_the_next_layer_where_it_does_not_pad(tmp_path):
    tiny = net()
    path = uneven(tiny, tmp_path / "m.onnx", spread=1.0, b2=lambda bias: bias + 40)
    model = open_model(path)
    assert [link.shiftable for link in model.info.links] == [False, True, False]
    link = model.info.links[1]
    feeds = tiny.samples(16)
    found = Rescaling(link, np.ones(16, np.float32), np.full(16, 20, np.float32), 9.0)
    expected = run(model, tmp_path / "a.onnx", feeds)
    got = run(model.rescaled([found]), tmp_path / "b.onnx", feeds)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


TIED = Tiny(
    """g (float[N, 32] x) => (float[N, 32] y) {
        a = Gemm (x, w, b1)
        b = Relu (a)
        c = Gemm (b, w, b2)
        d = Relu (c)
        y = Gemm (d, w2, b3)
    }""",
    {"w": (32, 32), "b1": (32,), "b2": (32,), "w2": (32, 32), "b3": (32,)},
    {"x": ((32,), None)},
)
SKIPPED = Tiny(
    """g (float[N, 8, 4, 4] x) => (float[N, 8, 4, 4] y) {
        a = Conv (x, w1, b1)
        b = Relu (a)
        c = Conv (b, w2, b2)
        y = Add (b, c)
    }""",
    {"w1": (8, 8, 1, 1), "b1": (8,), "w2": (8, 8, 1, 1), "b2": (8,)},
    {"x": ((8, 4, 4), None)},
)
SIGMOID = Tiny(
    SKIPPED.text.replace("Relu", "Sigmoid").replace("Add (b, c)", "Relu (c)"), SKIPPED.weights, SKIPPED.feeds
)


@pytest.mark.parametrize("tiny", [TIED, SKIPPED, SIGMOID])
def test_what_something_else_reads_or_what_is_no_rectifier_is_left_alone(tmp_path, tiny):
    assert open_model(tiny.save(tmp_path / "m.onnx")).info.links == ()


def scaled_by(factors):
    """A change of a constant: each of its channels times its factor."""
    return lambda array: array * factors.reshape(-1, *[1] * (array.ndim - 1))


@pytest.mark.parametrize(
    ("rectifier", "loud", "quiet"), [("Relu ({0})", 300.0, 1.0), ("Clip ({0}, zero, six)", 4.0, 0.02)]
)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_uneven_channels_come_much_closer_at_8_bits(tmp_path, engine, rectifier, loud, quiet):
    tiny = net(rectifier)
    size = np.where(np.arange(16) % 4, quiet, loud)
    up, down = scaled_by(size), scaled_by(1 / size)
    path = uneven(tiny, tmp_path / "m.onnx", 1.0, w1=up, b1=up, depthwise=down)
    feeds, got = tiny.samples(64), {}
    for equalize in (False, True):
        place = tmp_path / str(equalize)
        place.mkdir()
        recipe = place / "recipe.toml"
        recipe.write_text(write_recipe(ResolvedRecipe(replace(PRESETS["w8a8"], equalize=equalize))))
        files = write_files(path, feeds, str(recipe), place, engine)
        assert any("channels rescaled" in note for note in files.run.notes) == equalize
        expected, checker = files.float_outputs(feeds), files.checker(feeds)
        for one in files.candidates:
            assert checker.difference(one) is None
            got.setdefault(equalize, []).append(sqnr_db(expected, files.session(one).run(feeds)))
    assert min(got[True]) > max(got[False]) + 10


def test_high_biases_give_their_range_to_what_varies(tmp_path):
    tiny = Tiny(
        SKIPPED.text.replace("c = Conv", "y = Conv").replace("y = Add (b, c)", ""),
        {name: SKIPPED.weights[name] for name in ("w1", "w2", "b2")},
        SKIPPED.feeds,
        {"b1": np.full(8, 100, np.float32)},
    )
    path, feeds, got = tiny.save(tmp_path / "m.onnx"), tiny.samples(64), []
    for equalize in (False, True):
        place = tmp_path / str(equalize)
        place.mkdir()
        recipe = place / "recipe.toml"
        recipe.write_text(write_recipe(ResolvedRecipe(replace(PRESETS["w8a8"], equalize=equalize))))
        files = write_files(path, feeds, str(recipe), place, "openvino")
        mean = (expected := files.float_outputs(feeds))["y"].mean(axis=(0, 2, 3), keepdims=True)
        found = files.session(files.candidates[0]).run(feeds)
        got.append(sqnr_db({"y": expected["y"] - mean}, {"y": found["y"] - mean}))
    assert got[1] > got[0] + 10, got


def test_a_depthwise_layer_with_a_dead_channel(tmp_path):
    tiny = net()

    def killed(array):
        array[5] = 0
        return array

    path = uneven(tiny, tmp_path / "m.onnx", w1=killed, b1=killed)
    feeds = tiny.samples(64)
    files = write_files(path, feeds, "w8a8", tmp_path, "openvino")
    expected = files.float_outputs(feeds)
    assert min(sqnr_db(expected, files.session(one).run(feeds)) for one in files.candidates) > 30
