"""``--metric`` and ``evaluate``: what a run is scored by, which way is better, and what cannot be scored."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import fewbits as fb
from fewbits.engines.onnxruntime_engine import literal_session
from fewbits.errors import InputError
from fewbits.scoring import wished
from tests.tiny import Tiny, linear

ORT = ("--engine", "onnxruntime", "--threads", 1)
SHORT = (*ORT, "--recipe", "w8")
TWO_HEADS = Tiny(
    """g (float[N, 64] x) => (float[N, 10] logits, float[N, 1] age) {
        h = MatMul (x, w1)
        r = Relu (h)
        logits = MatMul (r, w2)
        age = MatMul (r, w3)
    }""",
    {"w1": (64, 64), "w2": (64, 10), "w3": (64, 1)},
    {"x": ((64,), None)},
)
FUNCTIONS = """
import numpy as np

def accuracy(outputs, labels):
    print("accuracy is computed")
    return (outputs.argmax(axis=1) == labels).mean()

def error(outputs, labels):
    return 1 - (outputs.argmax(axis=1) == labels).mean()

def of_the_model(model):
    return float(np.abs(model(np.ones((2, 64), np.float32))).mean())

def nan(outputs, labels):
    return float("nan")

def broken(outputs, labels):
    raise ValueError("no such class\\nand more")

calls = []
def picky(outputs, labels):
    calls.append(outputs)
    if len(calls) > 1:
        raise ValueError("once only")
    return 1.0

def rows(outputs, labels):
    return outputs[:, 0]

number = 3
"""


@pytest.fixture
def scored(place):
    """A model with two outputs, and samples with what it says itself as labels of either kind."""
    model = TWO_HEADS.save(place / "model.onnx")
    feeds = TWO_HEADS.samples(48, seed=2)
    answers = literal_session(model, 1).run(feeds)
    noisy = answers["age"][:, 0] + 0.1 * np.random.default_rng(0).standard_normal(48).astype(np.float32)
    np.savez(place / "classes.npz", **feeds, labels=answers["logits"].argmax(axis=1))
    np.savez(place / "targets.npz", **feeds, labels=noisy)
    np.savez(place / "plain.npz", **feeds)
    (place / "my_scores.py").write_text(FUNCTIONS)
    return {**answers, "targets": noisy}


@pytest.fixture
def run(command, short_measuring, scored, place, monkeypatch):
    """A short run from the command line; its answer and its report."""
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)

    def compress(*arguments):
        answer = command("compress", "model.onnx", *SHORT, *arguments, "--out", "out")
        path = place / "out" / "report.json"
        return answer, json.loads(path.read_text(), parse_constant=pytest.fail) if path.is_file() else None

    return compress


def of(report, name):
    return next(one for one in report["candidates"] if one["name"] == name)


# --- metrics by name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "data", "unit", "higher", "against", "original"),
    [
        ("top5", "classes", "%", True, "labels", 100.0),
        ("spearman", "targets", "", True, "labels", None),
        ("mse", "targets", "", False, "labels", None),
        ("psnr", "targets", "dB", True, "labels", None),
        ("mse", "plain", "", False, "original", 0.0),
        ("psnr", "plain", "dB", True, "original", 100.0),
    ],
)
def test_each_metric_with_its_direction_and_default_limit(run, metric, data, unit, higher, against, original):
    output = ("--metric-output", "age") if data == "targets" else ()
    answer, report = run("--metric", metric, "--eval", f"{data}.npz", *output)
    assert answer.code == 0, answer.err
    said = report["metric"]
    assert (said["name"], said["unit"], said["higher_is_better"]) == (metric, unit, higher)
    assert said["against"] == against
    assert said["output"] == ("age" if output else None if data == "plain" else "logits")
    if original is not None:
        assert said["original"] == original
    before, after = of(report, "original ort f32"), of(report, "w8 ort f32")
    assert before["metric"] == said["original"]
    assert after["drop"] == pytest.approx((1 if higher else -1) * (before["metric"] - after["metric"]))
    limit = report["limits"]["metric_limit"]
    assert limit < said["original"] if higher else limit > said["original"]
    assert after["met"] == (after["metric"] >= limit if higher else after["metric"] <= limit)
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert all(("lower is better" in text) != higher for text in (page, answer.out))
    assert f"score: {metric}, 48 samples" in answer.out


def test_the_scores_are_those_of_numpy(run, scored, place):
    _, report = run("--metric", "mse", "--metric-output", "age", "--eval", "targets.npz")
    y = scored["age"][:, 0].astype(float)
    assert report["metric"]["original"] == pytest.approx(np.square(y - scored["targets"]).mean(), rel=1e-4)
    x = np.load(place / "plain.npz")["x"]
    w8 = next(one for one in report["candidates"] if one["name"] == "w8 ort f32")
    saved = fb.compress(place / "model.onnx", recipe="w8", engine="onnxruntime", prefer="size", threads=1)
    _, age = saved.model(x)
    assert w8["metric"] == pytest.approx(np.square(age[:, 0] - scored["targets"]).mean(), rel=1e-4)


def test_a_limit_in_percent_of_what_is_nothing_for_the_original_is_of_its_energy(run, scored):
    _, report = run("--metric", "mse", "--eval", "plain.npz", "--max-drop", "2%")
    energy = sum(np.square(scored[name].astype(float)).sum() for name in ("logits", "age"))
    assert report["limits"]["metric_limit"] == pytest.approx(0.02 * energy / (48 * 11), rel=1e-4)
    _, report = run("--metric", "mse", "--eval", "plain.npz", "--max-drop", "0.5")
    assert report["limits"]["metric_limit"] == 0.5


def test_where_the_original_scores_nothing_a_percentage_is_no_loss_at_all(run, place):
    with np.load(place / "classes.npz") as arrays:
        np.savez(place / "wrong.npz", x=arrays["x"], labels=(arrays["labels"] + 1) % 10)
    answer, report = run("--eval", "wrong.npz")
    assert answer.code == 0
    assert report["limits"]["metric_limit"] == report["metric"]["original"] == 0.0
    assert any("the original's score is 0, of which 1% is nothing" in note for note in report["notes"])
    _, report = run("--eval", "wrong.npz", "--max-drop", "0.5")
    assert not any("of which" in note for note in report["notes"])


def test_the_verdict_says_which_way_is_worse(run):
    _, report = run("--metric", "mse", "--eval", "plain.npz", "--max-size", "90%", "--max-drop", "100%")
    score = of(report, "w8 ort f32")["metric"]
    assert f"with a score {score:.3g} higher (lower is better)" in report["verdict"]
    _, report = run("--metric", "psnr", "--eval", "plain.npz", "--max-size", "90%", "--max-drop", "100%")
    drop = of(report, "w8 ort f32")["drop"]
    assert f"losing {drop:.3g} dB of the score" in report["verdict"]


# --- functions --------------------------------------------------------------------------------------------------


def test_a_function_of_outputs_and_labels(run):
    answer, report = run(
        "--metric", "my_scores:accuracy", "--eval", "classes.npz", "--metric-output", "logits", "--json"
    )
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == report  # what the function prints is not there
    assert (report["metric"]["name"], report["metric"]["original"]) == ("my_scores:accuracy", 1.0)
    assert report["metric"]["higher_is_better"] is True


def test_a_function_of_which_less_is_better(run):
    given = ("--metric", "my_scores:error", "--eval", "classes.npz", "--metric-output", "logits")
    answer, report = run(*given, "--lower-is-better", "--max-drop", "0.2")
    assert answer.code == 0, answer.err
    assert report["metric"]["higher_is_better"] is False
    one = of(report, "w8 ort f32")
    assert one["drop"] == one["metric"]
    assert report["limits"]["metric_limit"] == 0.2


def test_a_function_of_the_model(run, place):
    linear().save(place / "model.onnx")
    answer, report = run("--metric", "my_scores:of_the_model", "--eval", "plain.npz", "--max-drop", "90%")
    assert answer.code == 0, answer.err
    assert report["metric"]["name"] == "my_scores:of_the_model"
    assert (report["metric"]["against"], report["metric"]["output"]) == (None, None)
    again = fb.load(place / "out")(np.ones((2, 64), np.float32))
    saved = next(one for one in report["candidates"] if one["name"] == report["saved"])
    assert saved["metric"] == pytest.approx(float(np.abs(again).mean()), rel=1e-4)


def test_what_raises_for_a_candidate_leaves_the_others(run):
    answer, report = run("--metric", "my_scores:picky", "--eval", "plain.npz")
    assert answer.code == 0, answer.err
    assert report["chosen"] == "original ort f32"
    one = of(report, "w8 ort f32")
    assert (one["metric"], one["met"]) == (None, None)
    assert one["failed"] == [
        "its score could not be computed: metric 'my_scores:picky': it raised ValueError: once only"
    ]


def test_evaluate_with_a_direction(scored, place, short_measuring):
    x = np.load(place / "plain.npz")["x"]
    wanted = scored["age"]

    def distance(model):
        return 1 + np.abs(model(x)[1] - wanted).mean()

    found = fb.compress(
        "model.onnx",
        evaluate=distance,
        higher_is_better=False,
        recipe="w8",
        engine="onnxruntime",
        max_drop="50%",
        threads=1,
    )
    one = found.report.candidate("w8 ort f32")
    assert found.report.metric.higher_is_better is False
    assert 0 < one.drop == pytest.approx(one.metric - 1)
    assert one.met
    tight = fb.compress(
        "model.onnx",
        evaluate=distance,
        higher_is_better=False,
        recipe="w8",
        engine="onnxruntime",
        max_drop=0,
        max_size="50%",
        threads=1,
    )
    assert not tight.met
    assert re.match(r"drop [\d.e-]+ is over 0$", tight.report.candidate("w8 ort f32").failed[0])


# --- what cannot be scored --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metric", "top2"), "metric is 'top2', perhaps top5; allowed are top1, top5, spearman, mse, psnr"),
        (("--metric", "F1"), "or module:function"),
        (("--metric", "no_such_module:f"), "there is no Python module 'no_such_module'"),
        (("--metric", "my_scores:acuracy"), "has no 'acuracy'; near names: accuracy"),
        (("--metric", "my_scores:number"), "is a int; give a function"),
        (("--metric", "my_scores:nan", "--eval", "classes.npz"), "metric 'my_scores:nan' is nan"),
        (
            ("--metric", "my_scores:broken", "--eval", "classes.npz"),
            "'my_scores:broken': it raised ValueError: no such class",
        ),
        (
            ("--metric", "my_scores:rows", "--eval", "plain.npz", "--metric-output", "age"),
            "it returned ndarray; it must return one number",
        ),
        (("--metric", "top1", "--eval", "plain.npz"), "plain.npz: metric 'top1' needs labels"),
        (("--metric", "spearman"), "metric 'spearman' needs labels"),
        (
            ("--metric", "spearman", "--eval", "targets.npz"),
            "one value per sample, but the output 'logits' is [32, 10]",
        ),
        (
            ("--metric", "mse", "--eval", "classes.npz"),
            "a number as label for every value of the output 'logits'",
        ),
        (("--eval", "targets.npz"), "float targets are for spearman, mse, psnr and cosine"),
        (
            ("--metric", "mse", "--metric-output", "y"),
            "metric_output is 'y'; the model's outputs are logits, age",
        ),
        (("--metric", "mse", "--lower-is-better"), "'mse' has a direction of its own: lower is better"),
        (("--lower-is-better",), "give evaluate or metric"),
        (
            ("--metric", "my_scores:of_the_model", "--metric-output", "age"),
            "is given the model and picks its own",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(refused, scored, arguments, said):
    assert said in refused("compress", "model.onnx", *SHORT, *arguments)


def test_which_functions_are_given_the_model():
    class Scores:
        def __call__(self, model):
            return 1.0

    def either(outputs, labels=None):
        return 1.0

    for function, of_model in (
        (lambda model: 1.0, True),
        (Scores(), True),
        (lambda outputs, labels: 1.0, False),
        (either, False),
        (lambda *both: 1.0, False),
        (np.dot, False),
        (max, False),
    ):
        assert (wished(function, None, None, None).of_model is not None) == of_model
    assert wished(either, None, False, "y").metric.name == "either"
    assert wished(either, None, False, "y").metric.higher_is_better is False
    with pytest.raises(InputError, match="metric is a int; give a name or a function"):
        wished(3, None, None, None)


def test_a_function_from_python(scored, place, short_measuring):
    def closeness(outputs, labels):
        return -float(np.abs(outputs[1][:, 0] - labels).mean())

    found = fb.compress(
        "model.onnx",
        eval="targets.npz",
        metric=closeness,
        recipe="w8",
        engine="onnxruntime",
        max_drop="50%",
        threads=1,
    )
    assert found.report.metric.name == "closeness"
    y = scored["age"][:, 0].astype(float)
    assert found.report.metric.original == pytest.approx(-np.abs(y - scored["targets"]).mean(), rel=1e-4)


def test_a_metric_and_an_evaluate_exclude_each_other():
    with pytest.raises(InputError, match="'mse' and evaluate are both given"):
        fb.compress("model.onnx", metric="mse", evaluate=lambda model: 1.0)


@pytest.mark.parametrize("value", [None, "good", [1, 2]])
def test_an_evaluate_that_gives_no_number(scored, value, place):
    with pytest.raises(InputError, match="metric 'evaluate': it returned"):
        fb.compress("model.onnx", evaluate=lambda model: value, recipe="w8", engine="onnxruntime", out="out")
    assert not (place / "out").exists()


def test_it_is_refused_before_anything_long(place, scored):
    """Labels are looked at before a sample is calibrated with."""
    told = []
    x = TWO_HEADS.samples(16)["x"]
    with pytest.raises(InputError, match="classes 0 to 9"):
        fb.compress(
            "model.onnx",
            {"x": x},
            eval={"x": x, "labels": np.arange(16)},
            progress=lambda stage, done, total: told.append(stage),
        )
    assert set(told) == {"load", "original"}


def test_a_rank_correlation_of_labels_that_are_all_the_same(refused, scored, place):
    np.savez(place / "same.npz", x=np.load(place / "plain.npz")["x"], labels=np.zeros(48))
    given = ("--metric", "spearman", "--metric-output", "age", "--eval", "same.npz")
    line = refused("compress", "model.onnx", *SHORT, *given)
    assert "score is not a finite number: metric 'spearman' is nan" in line
