"""The main job from Python: a model and arrays in, a Result that runs, prints and saves itself out."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

import fewbits as fb
from fewbits.engines.engine import EngineSettings
from fewbits.errors import InputError
from fewbits.loaded import LoadedModel
from fewbits.report.record import Report
from tests.tiny import EMBEDDING, MATMUL_ADD, MODELS, linear

ORT = {"engine": "onnxruntime", "threads": 1}
MLP = linear()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return MLP.save(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def result(path, tmp_path_factory, short_measuring_in_module):
    """Arrays in, w8a8 out."""
    out = tmp_path_factory.mktemp("result") / "out"
    return fb.compress(path, MLP.samples(64), recipe="w8a8", prefer="size", max_drop=100, out=out, **ORT)


# --- the result -------------------------------------------------------------------------------------------------


def test_a_model_and_arrays(result, path):
    assert result.met
    assert isinstance(result, fb.Result)
    assert result.report.saved == result.report.chosen == "w8a8 ort f32"
    assert (result.folder / "model.onnx").stat().st_size < 0.5 * path.stat().st_size


def test_the_model_is_a_drop_in(result, path):
    x = MLP.samples(5, seed=9)["x"]
    original = LoadedModel(path, EngineSettings("onnxruntime", "f32", 1))
    expected, y = original(x), result.model(x)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    assert 20 < 10 * np.log10(np.square(expected).sum() / np.square(expected - y).sum()) < 60
    np.testing.assert_array_equal(fb.load(result.folder)(x), y)
    np.testing.assert_array_equal(fb.load(str(result.folder))(x=x), y)


def test_it_prints_its_table(result):
    text = str(result)
    assert result.report.verdict in " ".join(text.split())
    assert "original ort f32" in text
    assert "w8a8 ort f32" in text
    assert str(result.folder / "report.html") in text


def test_it_saves_itself_elsewhere_as_a_whole(result, tmp_path):
    saved = result.save(tmp_path / "saved")
    assert saved == tmp_path / "saved"
    assert {one.name: one.read_bytes() for one in saved.iterdir()} == {
        one.name: one.read_bytes() for one in result.folder.iterdir()
    }
    x = MLP.samples(5)["x"]
    np.testing.assert_array_equal(fb.load(saved)(x), result.model(x))
    result.save(saved)  # again, in its own place
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="did not write"):
        result.save(tmp_path / "theirs")
    assert [one.name for one in (tmp_path / "theirs").iterdir()] == ["precious.txt"]


def test_without_a_folder_it_is_kept_aside(path, short_measuring, place):
    kept = fb.compress(path, recipe="w8", prefer="size", max_drop=100, **ORT)
    assert list(place.iterdir()) == []
    assert kept.folder.is_dir()
    assert kept.model(MLP.samples(2)["x"]).shape == (2, 10)
    assert [one.name for one in (place.parent / "temporary").iterdir()] == [kept.folder.parent.name]


# --- data -------------------------------------------------------------------------------------------------------


def containers():
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    x = MLP.samples(64)["x"]
    return {
        "an array": x,
        "a tensor": torch.from_numpy(x),
        "batches": [x[:10], x[10:50], x[50:]],
        "batches by name": [{"x": x[:50]}, {"x": x[50:]}],
        "a DataLoader": DataLoader(TensorDataset(torch.from_numpy(x)), batch_size=7),
    }


@pytest.mark.parametrize("kind", ["an array", "a tensor", "batches", "batches by name", "a DataLoader"])
def test_the_same_data_in_any_container_gives_the_same_bytes(result, path, short_measuring, tmp_path, kind):
    again = fb.compress(
        str(path), containers()[kind], recipe="w8a8", prefer="size", max_drop=100, out=tmp_path / "out", **ORT
    )
    assert (again.folder / "model.onnx").read_bytes() == (result.folder / "model.onnx").read_bytes()


def test_integer_inputs_without_data_are_rows_of_the_table(tmp_path, short_measuring):
    path = EMBEDDING.save(tmp_path / "model.onnx")
    found = fb.compress(path, recipe="w8", prefer="size", max_drop=100, out=tmp_path / "out", **ORT)
    assert found.report.shown.error is None
    assert found.model(EMBEDDING.samples(3)["ids"]).shape == (3, 8, 16)


def test_a_fixed_batch_and_several_outputs(tmp_path, short_measuring):
    for name, shapes in (("fixed_batch", [(4, 10)]), ("several", [(4, 32), (4,), (4, 32)])):
        tiny = MODELS[name]
        path = tiny.save(tmp_path / f"{name}.onnx")
        found = fb.compress(
            path,
            tiny.samples(40),
            recipe="w8a8_dynamic",
            prefer="size",
            max_drop=100,
            out=tmp_path / name,
            **ORT,
        )
        assert found.met
        outputs = found.model(tiny.samples(4))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert [one.shape for one in outputs] == shapes


# --- scores -----------------------------------------------------------------------------------------------------


def test_a_score_of_ones_own(path, short_measuring, tmp_path):
    x = MLP.samples(32, seed=3)["x"]
    seen = []

    def negative_error(model):
        seen.append(model)
        return -float(np.abs(model(x)).mean())

    found = fb.compress(
        path, evaluate=negative_error, recipe="w8", prefer="size", max_drop="50%", out=tmp_path / "out", **ORT
    )
    assert [one.recipe for one in found.report.candidates] == ["original", "w8"]
    assert found.report.metric.name == "evaluate"
    for model, one in zip(list(seen), found.report.candidates, strict=True):
        assert isinstance(model, LoadedModel)
        assert one.metric == negative_error(model)
    assert "%" not in str(found.report.metric.unit)


def test_a_candidate_whose_score_is_no_number_is_never_chosen(path, short_measuring, tmp_path):
    """The first that is scored is the original."""
    scores = itertools.chain([0.9], itertools.repeat(math.nan))
    found = fb.compress(
        path, evaluate=lambda model: next(scores), recipe="w8", prefer="size", out=tmp_path / "out", **ORT
    )
    assert found.report.chosen == "original ort f32"
    unscored = found.report.candidate("w8 ort f32")
    assert (unscored.metric, unscored.drop, unscored.met) == (None, None, None)
    assert unscored.failed == ("its score could not be computed: metric 'evaluate' is nan",)
    assert Report.from_json((found.folder / "report.json").read_text()) == found.report


def test_an_original_without_a_score_is_refused(path, short_measuring, place):
    with pytest.raises(InputError, match="score is not a finite number"):
        fb.compress(path, evaluate=lambda model: math.inf, recipe="w8", out="out", **ORT)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_evaluate_raises_comes_through_and_nothing_is_left(path, short_measuring, place, error):
    def broken(model):
        raise error

    with pytest.raises(error):
        fb.compress(path, MLP.samples(16), evaluate=broken, recipe="w8a8", out=place / "out", **ORT)
    assert list(place.iterdir()) == []
    assert list((place.parent / "temporary").iterdir()) == []


# --- the run ----------------------------------------------------------------------------------------------------


def test_progress_is_told_stage_by_stage(path, short_measuring, tmp_path):
    told = []
    fb.compress(
        path,
        MLP.samples(64),
        recipe="w8a8",
        max_drop=100,
        out=tmp_path / "out",
        progress=lambda *step: told.append(step),
        **ORT,
    )
    wanted = ["load", "original", "observe", "write", "score", "measure", "verify"]
    assert [stage for stage in dict.fromkeys(stage for stage, _, _ in told) if stage in wanted] == wanted
    for stage, done, total in told:
        assert done >= 0
        assert not total or done <= total, stage
    assert max(done for stage, done, _ in told if stage == "observe") == 48  # without those kept for scoring


def test_limits_in_words_and_in_numbers(path, short_measuring, tmp_path):
    limit = int(0.4 * path.stat().st_size)
    for number, given in enumerate(
        ({"max_size": "40%"}, {"max_size": limit}, {"max_size": f"{limit / 1000}KB"})
    ):
        found = fb.compress(path, recipe="fp16", max_drop="100%", out=tmp_path / str(number), **ORT, **given)
        assert not found.met
        assert found.report.limits.size_limit_bytes == limit
        assert found.report.shown.recipe == "fp16"
        assert found.model(MLP.samples(2)["x"]).shape == (2, 10)


def test_layers_may_be_named_by_their_operator(tmp_path, short_measuring):
    path = MATMUL_ADD.save(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="every layer in float"):
        fb.compress(path, recipe="w8", exclude=["MatMul"], out=tmp_path / "out", **ORT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prefer": "beauty"}, "speed, size, quality"),
        ({"max_drop": -1}, "max_drop"),
        ({"max_size": "huge"}, "max_size"),
        ({"min_speedup": math.nan}, "min_speedup"),
        ({"recipe": "w9"}, "'w9'"),
        ({"engine": "abacus"}, "'abacus'"),
        ({"threads": 0}, "threads"),
        ({"seed": -1}, "seed"),
        ({"data": 3}, "allowed are"),
        ({"out": Path("a") / "b"}, "does not exist"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(path, place, given, said):
    arguments = {"recipe": "w8", "out": "out", **ORT} | given
    with pytest.raises(InputError, match=said):
        fb.compress(path, **arguments)
    assert list(place.iterdir()) == []
    assert list((place.parent / "temporary").iterdir()) == []
