"""Numbers of a plan, as they lie in the written file."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fewbits as fb
from fewbits import decide
from fewbits.engines.onnxruntime_engine import literal_session
from fewbits.errors import InputError
from fewbits.planning.recipe import PRESETS, ResolvedRecipe, write_recipe
from tests.stages import sqnr_db, write_files
from tests.tiny import MODELS, Tiny

TINY_NORMAL = float(np.finfo(np.float32).tiny)


def shrunk(name, weight, factor, folder):
    """A tiny model with one weight multiplied, saved."""
    model = MODELS[name].proto()
    for tensor in model.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), weight)
            )
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


def biases(path):
    """The bias constants of every convolution and Gemm, by node: dtype and scale."""
    model = onnx.load(path)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            bias = node.input[2]
            source = made.get(bias)
            codes = constants[bias] if source is None else constants[source.input[0]]
            found[node.output[0]] = (codes.dtype, None if source is None else constants[source.input[1]])
    return found


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_bias_is_int32_with_the_scale_of_the_products(tmp_path, engine):
    path = MODELS["residual"].save(tmp_path / "m.onnx")
    for one in write_files(path, MODELS["residual"].samples(), "w8a8", tmp_path, engine).candidates:
        found = biases(one.file.path)
        scales = {plan.site.tensor: plan.scale for plan in one.file.plan.activations}
        assert len(found) == 3
        assert all(dtype == np.int32 for dtype, _ in found.values())
        first = one.file.plan.layers[0]
        np.testing.assert_allclose(
            found["a"][1], np.float32(scales["x"]) * first.weights[0].codes.scale.numpy(), rtol=1e-6
        )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_bias_whose_scale_would_be_denormal_stays_float(tmp_path, engine):
    path = shrunk("residual", "w2", 1e-37, tmp_path)
    samples = MODELS["residual"].samples()
    files = write_files(path, samples, "w8a8", tmp_path, engine)
    expected = files.float_outputs(samples)
    for one in files.candidates:
        found = biases(one.file.path)
        assert found["c"][0] == np.float32
        assert found["a"][0] == np.int32
        assert found["a"][1].min() >= TINY_NORMAL
        assert sqnr_db(expected, files.session(one).run(samples)) > 25


MIXED = Tiny(
    """g (float[N, 48] x) => (float[N, 32] y) {
        a = MatMul (x, w)
        y = MatMul (a, v)
    }""",
    {"w": (48, 32), "v": (32, 32)},
    {},
)
TIED = Tiny(
    """g (float[N, 64] x) => (float[N, 64] y) {
        a = MatMul (x, w)
        b = Tanh (a)
        y = MatMul (b, w)
    }""",
    {"w": (64, 64)},
    {},
)


def correlated(rows, columns):
    """Rows of few directions, as activations are: what one weight gets wrong, another can make up for."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, 6)) @ rng.standard_normal((6, columns))
    return {"x": (values + 0.05 * rng.standard_normal((rows, columns))).astype(np.float32)}


@pytest.mark.parametrize("recipe", ["w8", "w8a8_dynamic"])
def test_weights_alone_are_rounded_against_the_data_where_there_is_some(tmp_path, recipe):
    path, seen = MIXED.save(tmp_path / "m.onnx"), correlated(512, 48)
    got = {}
    for data in (None, seen):
        place = tmp_path / ("nearest" if data is None else "compensated")
        place.mkdir()
        files = write_files(path, data, recipe, place, "onnxruntime")
        (one,) = files.candidates
        numbers = place / "numbers.onnx"  # what the codes stand for, without rounding activations
        weights_only = replace(
            one.file.plan, layers=tuple(replace(layer, activations=None) for layer in one.file.plan.layers)
        )
        files.run.model.spell_out(weights_only, numbers)
        outputs = literal_session(numbers, 1).run(seen)
        got[data is None] = sqnr_db(files.float_outputs(seen), outputs)
    assert got[False] > got[True] + 6


def test_a_weight_that_two_layers_read_stays_one_table(tmp_path):
    path = TIED.save(tmp_path / "m.onnx")
    (one,) = write_files(path, correlated(256, 64), "w8", tmp_path, "onnxruntime").candidates
    assert one.file.path.stat().st_size < 0.45 * path.stat().st_size


@pytest.mark.parametrize("recipe", ["w8", "w8a8"])
def test_a_table_that_is_looked_up_at_constant_places(tmp_path, recipe):
    tiny = Tiny(
        """g (float[N, 4, 32] x) => (float[N, 4, 32] y) {
            p = Constant <value_ints = [3, 1, 4, 1]> ()
            e = Gather (table, p)
            s = Add (x, e)
            y = MatMul (s, w)
        }""",
        {"table": (2000, 32), "w": (32, 32)},
        {"x": ((4, 32), None)},
    )
    seen = tiny.samples(64)
    files = write_files(tiny.save(tmp_path / "m.onnx"), seen, recipe, tmp_path)
    expected = files.float_outputs(seen)
    for one in files.candidates:
        assert sqnr_db(expected, files.session(one).run(seen)) > 30


def test_what_was_rounded_against_data_is_made_again_with_data_only(tmp_path, short_measuring):
    path, seen = MIXED.save(tmp_path / "m.onnx"), correlated(64, 48)
    made = fb.compress(
        path, seen, recipe="w8", engine="onnxruntime", threads=1, max_drop="100%", prefer="size"
    )
    recipe = made.folder / "recipe.toml"
    with pytest.raises(InputError, match=r"recipe 'w8' was made with calibration data; give --data"):
        fb.compress(path, recipe=str(recipe), engine="onnxruntime", threads=1)
    again = fb.compress(
        path, seen, recipe=str(recipe), engine="onnxruntime", threads=1, max_drop="100%", prefer="size"
    )
    assert (again.folder / "m.onnx").read_bytes() == (made.folder / "m.onnx").read_bytes()


LOUD = np.logspace(0.5, -1.5, 48).astype(np.float32)  # how large each input is
MATMUL = "g (float[N, 48] x) => (float[N, 32] y) { y = MatMul (x, w) }"


def numbers_db(path, seen, others, recipe, folder):
    """How close the numbers of a recipe's file are on other data, dB."""
    folder.mkdir()
    files = write_files(path, seen, recipe, folder, "onnxruntime")
    files.run.model.spell_out(files.written[0].plan, folder / "numbers.onnx")
    return sqnr_db(files.float_outputs(others), literal_session(folder / "numbers.onnx", 1).run(others))


def test_codebooks_count_what_an_element_is_multiplied_with(tmp_path, monkeypatch):
    """One that is worse for the output, though better for the energy of the inputs, is not taken."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((48, 32)).astype(np.float32) * LOUD[::-1, None]
    path = Tiny(MATMUL, {}, {}, {"w": weight}).save(tmp_path / "m.onnx")
    seen, others = ({"x": draw.standard_normal((rows, 48)).astype(np.float32) * LOUD} for rows in (256, 512))
    recipe = tmp_path / "book.toml"
    rules = PRESETS["w4_codebook"].rules[-1:]  # all layers, the last as well
    recipe.write_text(write_recipe(ResolvedRecipe(replace(PRESETS["w4_codebook"], rules=rules))))
    found = {}
    for name, change in {"weighted": None, "plain": 1.0, "worse": 0.5}.items():
        if change is not None:
            book = lambda q, *rest, by=change: replace(q, codebook=q.codebook * by)  # noqa: E731
            monkeypatch.setattr(decide, "with_weighted_codebook", book)
        found[name] = numbers_db(path, seen, others, str(recipe), tmp_path / name)
    assert found["weighted"] > found["plain"] + 2
    assert found["worse"] == found["plain"]


def test_damping_is_found_for_each_layer(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    path = Tiny(MATMUL, {"w": (48, 32)}, {}).save(tmp_path / "m.onnx")
    inputs = (draw.standard_normal((600, 48)) @ draw.standard_normal((48, 48))).astype(np.float32)
    few, others = {"x": inputs[:36]}, {"x": inputs[36:]}
    found = numbers_db(path, few, others, "w3", tmp_path / "found")
    monkeypatch.setattr(decide, "find_floor", lambda *arguments: 0.01)
    fixed = numbers_db(path, few, others, "w3", tmp_path / "fixed")
    assert found > fixed + 0.7
