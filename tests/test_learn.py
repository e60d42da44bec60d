"""Recipes that learn: plans, files and what is refused."""

import re

import numpy as np
import onnx
import pytest

import fewbits as fb
from fewbits import learn, trying
from fewbits.errors import InputError
from fewbits.methods.reconstruction import Spent
from fewbits.planning.recipe import PRESETS, assign, read_recipe
from tests.models.cifar import images, resnet20
from tests.models.test_network import RESIDUAL
from tests.stages import sqnr_db, write_files
from tests.tiny import ATTENTION, CONV_BN, Tiny, linear

TIED = Tiny(
    "g (float[N, 24] x) => (float[N, 24] y) "
    "{ a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, w)  d = Relu (c)  y = MatMul (d, v) }",
    {"w": (24, 24), "v": (24, 24)},
    {"x": ((24,), None)},
)


@pytest.fixture(autouse=True)
def short_lessons(monkeypatch):
    monkeypatch.setattr(trying, "SPENT", {"fast": None, "normal": Spent(80, 16), "high": Spent(160, 16)})


def written(tiny, recipe, folder, effort, samples=None):
    folder.mkdir()
    path = tiny.save(folder / "m.onnx")
    return write_files(path, samples or tiny.samples(64), recipe, folder, effort=effort)


def test_a_real_net_gains_decibels_on_images_it_has_not_seen(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(trying, "SPENT", {"fast": None, "normal": Spent(25, 16)})
    weights = shared_data / "resnet20_cifar10.safetensors"
    if not weights.is_file():
        pytest.skip(f"{weights} is not there")
    path = resnet20(weights, tmp_path / "resnet20.onnx")
    x, _ = images(shared_data / "cifar10_jpeg_train10k.npz", 0, 96)
    found = []
    for effort in ("fast", "normal"):
        folder = tmp_path / effort
        folder.mkdir()
        files = write_files(path, {"x": x[:64]}, "w2a8", folder, engine="onnxruntime", effort=effort)
        feeds = {"x": x[64:]}
        (one,) = files.candidates
        assert files.checker({"x": x[64:68]}).difference(one) is None
        found.append(sqnr_db(files.float_outputs(feeds), files.session(one).run(feeds)))
    before, after = found
    assert after > before + 2


@pytest.mark.parametrize(
    ("recipe", "tiny"),
    [(name, RESIDUAL) for name in ("w2a8", "w3a8", "w4a4", "w2", "w4_codebook")] + [("w2", ATTENTION)],
)
def test_learning_is_no_loss_in_any_engine(recipe, tiny, tmp_path):
    feeds = tiny.samples(64, seed=7)
    found = []
    for effort in ("fast", "normal"):
        files = written(tiny, recipe, tmp_path / effort, effort)
        expected = files.float_outputs(feeds)
        checker = files.checker({name: array[:4] for name, array in feeds.items()})
        for one in files.candidates:
            assert checker.difference(one) is None, one.name
        found.append(max(sqnr_db(expected, files.session(one).run(feeds)) for one in files.candidates))
    before, after = found
    assert after > before


@pytest.mark.parametrize("recipe", ["w2a8", "w4_codebook"])
def test_what_is_learned_around_settled_codes_gains_a_fifth_of_a_decibel(recipe, tmp_path, monkeypatch):
    feeds = RESIDUAL.samples(256, seed=7)
    found, codes = {}, {}
    for name in ("blocks", "whole"):
        with monkeypatch.context() as patch:
            if name == "blocks":
                patch.setattr(learn.Lesson, "_settle", lambda *arguments: None)
            files = written(RESIDUAL, recipe, tmp_path / name, "normal", RESIDUAL.samples(256))
        session = files.session(files.candidates[0])
        found[name] = sqnr_db(files.float_outputs(feeds), session.run(feeds))
        codes[name] = [layer.weights[0].codes.codes for layer in files.written[0].plan.layers]
    assert found["whole"] > found["blocks"] + 0.2
    assert all(np.array_equal(a, b) for a, b in zip(*codes.values(), strict=True))


def test_every_target_gets_the_same_codes(tmp_path):
    files = written(RESIDUAL, "w3a8", tmp_path / "out", "normal")
    plans = [one.plan for one in files.written]
    assert {plan.target.engine for plan in plans} == {"onnxruntime", "openvino"}
    for plan in plans[1:]:
        for a, b in zip(plans[0].layers, plan.layers, strict=True):
            assert np.array_equal(a.weights[0].codes.codes, b.weights[0].codes.codes)
            assert np.array_equal(a.weights[0].codes.scale, b.weights[0].codes.scale)


def test_the_first_and_the_last_layer_keep_8_bits_in_4(tmp_path):
    files = written(RESIDUAL, "w4a4", tmp_path / "out", "normal")
    plan = files.written[0].plan
    assert [one.weights[0].codes.qtype.name for one in plan.layers] == ["int8", "int4", "int8"]
    assert [one.activations.qtype for one in plan.layers] == ["uint8", "uint4", "uint8"]
    model = onnx.load(files.written[0].path)
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert {onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.INT8} <= types


def test_tied_weights_stay_one(tmp_path):
    files = written(TIED, "w3", tmp_path / "out", "normal")
    plan = files.written[0].plan
    first, second, _ = plan.layers
    assert np.array_equal(first.weights[0].codes.codes, second.weights[0].codes.codes)
    assert np.array_equal(first.weights[0].codes.scale, second.weights[0].codes.scale)
    stored = onnx.load(files.written[0].path).graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT4 for tensor in stored) == 2
    assert (
        "weights that several layers read are rounded once for all of them: MatMul_0, MatMul_2"
        in " ".join(files.run.notes)
    )


def test_a_single_sample_is_learned_from(tmp_path):
    files = written(CONV_BN, "w2a8", tmp_path / "out", "normal", CONV_BN.samples(1))
    feeds = CONV_BN.samples(2)
    for one in files.candidates:
        assert all(np.isfinite(array).all() for array in files.session(one).run(feeds).values())


def test_a_fixed_batch_is_learned_in(tmp_path):
    files = written(linear(batch=2), "w2", tmp_path / "out", "normal")
    assert not any("not learned" in note for note in files.run.notes)


def test_what_cannot_be_differentiated_is_said(tmp_path):
    tiny = Tiny(
        "g (float[N, 16] x) => (float[N, 16] y) { a = MatMul (x, w)  b = Celu (a)  y = MatMul (b, v) }",
        {"w": (16, 16), "v": (16, 16)},
        {"x": ((16,), None)},
    )
    files = written(tiny, "w3", tmp_path / "out", "normal")
    (note,) = [one for one in files.run.notes if "not learned" in one]
    assert note.startswith("recipe 'w3': not learned; weights make up for each other: operator Celu")
    assert files.written


def test_samples_that_are_not_along_the_first_axis_inside_are_said(tmp_path):
    tiny = Tiny(
        """g (float[N, 8, 16] x) => (float[N, 16] y) {
            t = Transpose <perm = [1, 0, 2]> (x)
            a = MatMul (t, w)
            b = Relu (a)
            c = MatMul (b, v)
            d = Transpose <perm = [1, 0, 2]> (c)
            y = ReduceMean <axes = [1], keepdims = 0> (d)
        }""",
        {"w": (16, 16), "v": (16, 16)},
        {"x": ((8, 16), None)},
    )
    files = written(tiny, "w3", tmp_path / "out", "normal")
    (note,) = [one for one in files.run.notes if "not learned" in one]
    assert "does not have the samples along its first axis" in note


def test_the_recipe_gives_the_same_bytes_again(tmp_path, short_measuring):
    path = linear().save(tmp_path / "m.onnx")
    given = {"max_drop": "99%", "max_size": "60%", "prefer": "quality", "threads": 1}
    samples = linear().samples(64)
    said = []
    first = fb.compress(
        path, samples, recipe="w2a8", effort="high", out=tmp_path / "a", say=said.append, **given
    )
    again = fb.compress(
        path, samples, recipe=str(tmp_path / "a" / "recipe.toml"), out=tmp_path / "b", **given
    )
    chosen = [next(one for one in r.report.candidates if one.path) for r in (first, again)]
    assert chosen[0].recipe == "w2a8"
    assert (tmp_path / "a" / "m.onnx").read_bytes() == (tmp_path / "b" / "m.onnx").read_bytes()
    assert read_recipe(str(tmp_path / "b" / "recipe.toml")).effort == "high"
    first, told = said
    assert re.fullmatch(
        r"about .+ s for \d+ candidates, .+ s of it to learn", first
    )  # before anything is run
    assert told.startswith("learning w2a8 takes about ")


def test_without_data_weights_are_rounded_to_nearest(tmp_path):
    path = RESIDUAL.save(tmp_path / "m.onnx")
    files = write_files(path, None, "w4", tmp_path, effort="normal")
    assert files.written
    with pytest.raises(InputError, match="needs calibration data"):
        write_files(path, None, "w4a8", tmp_path, effort="normal")


def test_effort_is_one_of_three(tmp_path, refused):
    path = RESIDUAL.save(tmp_path / "m.onnx")
    line = refused("compress", path, "--effort", "utmost")
    assert line == "fewbits: effort is 'utmost'; allowed are fast, normal, high"


def test_first_and_last_are_called_by_name(tmp_path):
    files = written(RESIDUAL, "w4a8", tmp_path / "out", "fast")
    recipe = files.written[0].draft.recipe
    assert [rule.match for rule in recipe.rules] == ["Conv_0", "Conv_5", "*"]
    alone = Tiny(
        "g (float[N, 8] x) => (float[N, 8] y) { y = MatMul (x, w) }", {"w": (8, 8)}, {"x": ((8,), None)}
    )
    files = written(alone, "w4a8", tmp_path / "alone", "fast")
    assert files.written[0].plan.layers[0].weights[0].codes.qtype.name == "int8"


def test_memory_bounds_the_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "SAMPLE_BYTES", 8 * 4 * 36 * 4)  # eight samples of 4 x 6 x 6
    files = written(RESIDUAL, "w4a8", tmp_path / "out", "fast")
    run, draft = files.run, files.written[0].draft
    plan = trying._decided(run, draft, trying.observe_for(run, [draft]))
    lesson = learn.Lesson(run.model, plan, run.calibration, Spent(2, 4))
    assert len(lesson._inputs["x"]) == 8


def test_presets_that_learn():
    assert {name for name, recipe in PRESETS.items() if recipe.learn} == {
        *("w4", "w3", "w2", "w4_codebook"),
        *("w4a8", "w4a4", "w3a8", "w2a8", "w2a4"),
    }
    assert assign  # every preset is assigned to many models in test_every_model
