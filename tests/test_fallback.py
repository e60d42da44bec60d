"""Layers go back to a higher precision until the drop limit holds."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import fewbits as fb
from fewbits.candidates import Draft
from fewbits.engines.targets import TARGETS
from fewbits.fallback import losing, raised
from fewbits.planning.recipe import PRESETS, ResolvedRecipe, Rule, read_recipe, write_recipe
from fewbits.planning.scheme import Scheme
from tests.tiny import Tiny

CHANNELS = 16
UNEVEN = Tiny(
    """g (float[N, 3, 8, 8] x) => (float[N, 10] logits) {
        a = Conv (x, w1, b1)
        b = Relu (a)
        c = Conv <group = 16, pads = [1, 1, 1, 1]> (b, depthwise, b2)
        d = Relu (c)
        e = Conv (d, w3, b3)
        f = Relu (e)
        p = GlobalAveragePool (f)
        q = Flatten (p)
        logits = Gemm <transB = 1> (q, w4, b4)
    }""",
    {
        "w1": (CHANNELS, 3, 1, 1),
        "b1": (CHANNELS,),
        "depthwise": (CHANNELS, 1, 3, 3),
        "b2": (CHANNELS,),
        "w3": (512, CHANNELS, 1, 1),
        "b3": (512,),
        "w4": (10, 512),
        "b4": (10,),
    },
    {"x": ((3, 8, 8), None)},
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A depthwise net with every other channel 300 times as large as its neighbours, for the same outputs."""
    model = UNEVEN.proto()
    factors = np.where(np.arange(CHANNELS) % 2, 1, 300).astype(np.float32)
    for tensor in model.graph.initializer:
        by = {"w1": factors, "b1": factors, "depthwise": 1 / factors}.get(tensor.name)
        if by is not None:
            array = numpy_helper.to_array(tensor)
            spread = by.reshape(-1, *[1] * (array.ndim - 1)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array * spread, tensor.name))
    path = tmp_path_factory.mktemp("uneven") / "m.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """`w8a8` that leaves channels as uneven as they are."""
    path = tmp_path_factory.mktemp("plain") / "w8a8.toml"
    path.write_text(write_recipe(ResolvedRecipe(replace(PRESETS["w8a8"], equalize=False))), encoding="utf-8")
    return str(path)


@pytest.fixture
def closeness(uneven):
    """A score: 100 less the percentage of the float outputs' energy that is lost."""
    samples = UNEVEN.samples(64, seed=5)["x"]
    exact = ort.InferenceSession(uneven, providers=["CPUExecutionProvider"]).run(None, {"x": samples})[0]
    return lambda model: 100 * (1 - np.square(model(samples) - exact).sum() / np.square(exact).sum())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_layer_that_hurts_most_goes_back_first(
    uneven, plain, closeness, tmp_path, short_measuring, engine
):
    samples = UNEVEN.samples(128)
    result = fb.compress(
        uneven,
        samples,
        recipe=plain,
        engine=engine,
        evaluate=closeness,
        max_drop=0.1,
        max_size="90%",
        threads=1,
        out=tmp_path / "out",
    )
    (found,) = result.report.fallbacks
    assert result.met
    assert result.report.chosen == found.candidate
    assert found.layers == 4
    assert [one.layers for one in found.steps] == [("Conv_2",)]
    assert found.steps[-1].drop <= 0.1 < result.report.candidate(found.start).drop
    layer = next(one for one in result.report.layers if one.name == "Conv_2")
    assert layer.bits == 16
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Back to a higher precision" in html
    again = fb.compress(
        uneven,
        samples,
        recipe=str(tmp_path / "out" / "recipe.toml"),
        evaluate=closeness,
        max_drop=0.1,
        max_size="90%",
        threads=1,
        out=tmp_path / "again",
    )
    assert again.model.path.read_bytes() == result.model.path.read_bytes()


def test_where_the_limit_holds_nothing_is_raised(uneven, tmp_path, short_measuring):
    result = fb.compress(uneven, UNEVEN.samples(32), recipe="w8a8", max_drop="100%", threads=1)
    assert result.report.fallbacks == ()


def test_raised_layers_come_before_the_recipes_own_rules():
    recipe = raised(PRESETS["w8a8"], ["a", "b"], Scheme("fp16"))
    assert recipe.rules[:2] == (Rule("a", Scheme("fp16")), Rule("b", Scheme("fp16")))
    assert recipe.rules[2:] == PRESETS["w8a8"].rules
    assert read_recipe("w8a8").recipe == PRESETS["w8a8"]


@dataclass
class Scored:
    """What `losing` looks at."""

    recipe: str
    engine: str
    precision: str
    score: float | None
    error: str | None = None

    @property
    def candidate(self):
        return self

    @property
    def settings(self):
        return self

    @property
    def file(self):
        return self

    @property
    def draft(self):
        target = TARGETS[self.engine][0]
        return None if self.recipe == "original" else Draft(PRESETS[self.recipe], target, ())


def test_only_static_files_that_all_lose_too_much_fall_back():
    lost = Scored("w8a8", "openvino", "f32", 80.0)
    better = Scored("w8a8", "openvino", "bf16", 85.0)
    fine = Scored("w8a8_minmax", "openvino", "f32", 99.0)
    scored = [
        Scored("original", "openvino", "bf16", 10.0),
        Scored("w8", "openvino", "f32", 10.0),
        lost,
        better,
        fine,
        Scored("w8a8_minmax", "openvino", "f32", 10.0),
        Scored("w8a8", "onnxruntime", "f32", None),
        Scored("w8a8", "litert", "f32", 80.0),  # on integers throughout
    ]
    assert list(losing(scored, lambda score: 100 - score, 2.0)) == [lost]
    assert list(losing(scored, lambda score: score, 9.0)) == [lost, scored[5]]  # where less is better
