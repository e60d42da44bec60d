"""Weights alone in 4 bits: protected, and by half-quadratic splitting; as engines run them."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fewbits as fb
from fewbits.errors import InputError
from fewbits.planning.recipe import PRESETS, ResolvedRecipe, read_recipe, write_recipe
from fewbits.planning.scheme import Scheme
from fewbits.report.record import Report
from tests.stages import sqnr_db, write_files
from tests.tiny import EMBEDDING, Tiny

NET = Tiny(
    """g (float[N, 128] x) => (float[N, 128] y) {
        a = MatMul (x, w1)
        b = MatMul (x, w2)
        c = Add (a, b)
        d = Relu (c)
        y = MatMul (d, w3)
    }""",
    {"w1": (128, 128), "w2": (128, 128), "w3": (128, 128)},
    {"x": ((128,), None)},
)


def changed(path, change):
    """The net with its weights changed."""
    proto = NET.proto(21)
    for tensor in proto.graph.initializer:
        array = change(numpy_helper.to_array(tensor)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    return path


def closeness(path, data, feeds, recipe, folder, engine):
    folder.mkdir()
    toml = folder / "recipe.toml"
    toml.write_text(write_recipe(ResolvedRecipe(recipe)), encoding="utf-8")
    files = write_files(path, data, str(toml), folder, engine)
    expected, checker = files.float_outputs(feeds), files.checker(feeds)
    assert all(checker.difference(one) is None for one in files.candidates)
    return min(sqnr_db(expected, files.session(one).run(feeds)) for one in files.candidates)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_protected_weights_are_closer_where_some_activations_are_large(tmp_path, engine):
    path = changed(tmp_path / "m.onnx", lambda array: array * np.where(np.arange(128) < 4, 0.05, 1)[:, None])
    feeds = NET.samples(128)
    feeds["x"][:, :4] *= 40
    data, seen = {"x": feeds["x"][:64]}, {"x": feeds["x"][64:]}
    got = [
        closeness(path, data, seen, replace(PRESETS["w4_g128_awq"], protect=on), tmp_path / str(on), engine)
        for on in (False, True)
    ]
    assert got[1] > got[0] + 3


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("per", ["group", "channel"])
def test_zero_between_codes_is_closer_where_weights_lie_on_one_side(tmp_path, engine, per):
    path = changed(tmp_path / "m.onnx", lambda array: array**2 + 0.01)
    feeds, got = NET.samples(64), []
    size = 64 if per == "group" else None
    for scheme in (
        Scheme("int4", per, size, range="mse"),
        Scheme("int4", per, size, symmetric=False, range="half_quadratic"),
    ):
        rules = tuple(replace(rule, weights=scheme) for rule in PRESETS["w4_g64_hqq"].rules)
        recipe = replace(PRESETS["w4_g64_hqq"], name="mine", rules=rules[-1:])
        got.append(closeness(path, None, feeds, recipe, tmp_path / scheme.range, engine))
    assert got[1] > got[0] + 3


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('weights = {qtype = "int4", range = "half_quadratic"}', "write symmetric=false"),
        (
            'weights = {qtype = "int8", per = "channel"}\n'
            'activations = {qtype = "uint8", symmetric = false, range = "half_quadratic"}',
            "is for weights",
        ),
    ],
)
def test_what_half_quadratic_ranges_are_not_for(tmp_path, rule, message):
    path = tmp_path / "r.toml"
    path.write_text(f'name = "mine"\n[[rules]]\nmatch = "*"\n{rule}\n', encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_recipe(str(path))


def test_codes_are_not_multiplied_with_weights_whose_zero_lies_between_codes(tmp_path):
    static = Scheme("uint8", symmetric=False)
    free = Scheme("int8", "channel", symmetric=False, range="half_quadratic")
    rule = replace(PRESETS["w8"].rules[0], weights=free, activations=static)
    with pytest.raises(InputError, match="zero lies between codes"):
        closeness(
            NET.save(tmp_path / "m.onnx"),
            NET.samples(8),
            NET.samples(8),
            replace(PRESETS["w8"], name="mine", rules=(rule,)),
            tmp_path / "out",
            "onnxruntime",
        )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_one_codebook_for_all_layers(tmp_path, engine):
    path, feeds = NET.save(tmp_path / "m.onnx", 21), NET.samples(64)
    book = replace(PRESETS["w4_codebook"].rules[-1])
    recipe = replace(PRESETS["w4_codebook"], name="mine", rules=(book,), share=True, correct=False)
    toml = tmp_path / "recipe.toml"
    toml.write_text(write_recipe(ResolvedRecipe(recipe)), encoding="utf-8")
    files = write_files(path, feeds, str(toml), tmp_path, engine, effort="normal")
    books = [layer.weights[0].codes.codebook.tolist() for layer in files.written[0].plan.layers]
    assert books[0] == books[1] == books[2]
    expected, checker = files.float_outputs(feeds), files.checker(feeds)
    for one in files.candidates:
        assert checker.difference(one) is None
        assert sqnr_db(expected, files.session(one).run(feeds)) > 15


@pytest.mark.parametrize("name", ["w4_g32", "w4_g128_awq"])
def test_weights_in_groups_make_up_for_each_other(tmp_path, name):
    path, feeds = NET.save(tmp_path / "m.onnx", 21), NET.samples(256)
    mixed = np.random.default_rng(3).standard_normal((128, 128)) * np.logspace(0, -2, 128)[:, None]
    feeds["x"] = (feeds["x"] @ mixed).astype(np.float32)
    data, seen = {"x": feeds["x"][:192]}, {"x": feeds["x"][192:]}
    plain, compensated = (
        closeness(path, data, seen, replace(PRESETS[name], compensate=on), tmp_path / str(on), "openvino")
        for on in (False, True)
    )
    assert compensated > plain + 3
    assert PRESETS[name].compensate and not PRESETS[name].needs_data


def test_the_report_says_how_codebooks_are_written_and_why(tmp_path, short_measuring):
    """A table's rows are looked up; what is multiplied is decoded when the file is loaded."""
    recipe = tmp_path / "recipe.toml"
    found = replace(PRESETS["w4_codebook"], name="mine", rules=PRESETS["w4_codebook"].rules[-1:], learn=False)
    recipe.write_text(write_recipe(ResolvedRecipe(found)), encoding="utf-8")
    path = EMBEDDING.save(tmp_path / "m.onnx")
    fb.compress(
        path,
        EMBEDDING.samples(16),
        recipe=str(recipe),
        engine="openvino",
        threads=1,
        max_drop="100%",
        prefer="size",
        out=tmp_path / "out",
    )
    report = Report.from_json((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    written = next(one for one in report.candidates if one.name == report.chosen)
    assert written.weight_form == "Cast + Gather from a codebook, Gather codes, then look up their entries"
    why = "codebooks are decoded at load, as no engine here multiplies by their codes: that saves file, not memory"
    assert written.folded == why
    assert why in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
