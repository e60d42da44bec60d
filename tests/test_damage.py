"""What rounding costs layer by layer, in the report and on its page."""

import json
from dataclasses import replace

import pytest

import fewbits as fb
from fewbits.damage import damage, only
from fewbits.models.model import open_model
from fewbits.planning.recipe import PRESETS, ResolvedRecipe, Rule, write_recipe
from fewbits.planning.scheme import Scheme
from tests.stages import write_files
from tests.tiny import MODELS

NET = MODELS["conv_bn"]


def uneven(folder, layer):
    """w8a8, but two bits for the second convolution."""
    plain = PRESETS["w8a8"]
    static = plain.rules[-1].activations
    bad = Rule(layer, Scheme("int2", "channel"), static)
    path = folder / "uneven.toml"
    recipe = replace(plain, name="uneven", rules=(bad, plain.rules[-1]), equalize=False)
    path.write_text(write_recipe(ResolvedRecipe(recipe)), encoding="utf-8")
    return str(path)


def test_the_layer_with_the_fewest_bits_loses_most(tmp_path):
    path = NET.save(tmp_path / "m.onnx")
    files = write_files(
        path, NET.samples(64), uneven(tmp_path, open_model(path).info.layers[1].name), tmp_path, "openvino"
    )
    plan, info = files.written[0].plan, files.run.model.info
    names = [layer.name for layer in info.layers]
    found = damage(plan, info.layers, None)
    assert [one.layer for one in found] == names
    assert min(found, key=lambda one: one.sqnr_db).layer == names[1]
    alone = only(plan, info.layers[1].node)
    assert [layer.float_reason is None for layer in alone.layers] == [False, True, False]
    assert [edge.node for one in alone.activations for edge in one.site.readers] == [info.layers[1].node]


def test_the_report_has_all_layers_and_measures_the_worst(tmp_path, short_measuring):
    path = NET.save(tmp_path / "m.onnx")
    result = fb.compress(
        path,
        NET.samples(64),
        recipe=uneven(tmp_path, open_model(path).info.layers[1].name),
        engine="openvino",
        max_drop="100%",
        max_size="90%",
        threads=1,
        out=tmp_path / "out",
    )
    found = result.report.sensitivity
    assert [one.recipe for one in found] == ["uneven"] * 3
    assert all(one.sqnr_db is not None for one in found)
    measured = [one for one in found if one.output_sqnr_db is not None]
    assert len(measured) == 2
    low = min(measured, key=lambda one: one.output_sqnr_db)
    assert "int2" in low.scheme
    assert low.output_sqnr_db < max(one.output_sqnr_db for one in measured) - 6
    assert low.metric is not None
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "What each recipe does to each layer" in page
    assert page.count('class="n cell') == 3
    data = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert data["sensitivity"][0]["recipe"] == "uneven"


@pytest.mark.parametrize("engine", ["onnxruntime"])
def test_what_came_is_not_taken_apart(tmp_path, short_measuring, engine):
    path = NET.save(tmp_path / "m.onnx")
    result = fb.compress(path, NET.samples(16), recipe="original", engine=engine, threads=1)
    assert result.report.sensitivity == ()
