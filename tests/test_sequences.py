"""The main job on a model whose output state feeds its next step: observed, scored and checked as sequences."""

import json

import numpy as np
import pytest

import fewbits as fb
from fewbits.comparison import compare
from fewbits.engines.onnxruntime_engine import literal_session
from fewbits.errors import InputError
from fewbits.feeding import Feeding
from fewbits.models.model import open_model
from fewbits.observe import observe
from fewbits.remeasure import measure
from fewbits.samples import open_samples
from tests.tiny import Tiny

STEPS = Tiny(
    """g (float[N, 16] x, float[2, N, 32] state, int64 rate) => (float[N, 4] y, float[2, N, 32] stateN) {
        factor = Cast <to = 1> (rate)
        base = Constant <value_float = 8000.0> ()
        share = Div (factor, base)
        louder = Mul (x, share)
        zero = Constant <value_ints = [0]> ()
        one = Unsqueeze (louder, zero)
        h, c = Split <axis = 0> (state)
        all, hN, cN = LSTM <hidden_size = 32> (one, wx, wh, b, "", h, c)
        stateN = Concat <axis = 0> (hN, cN)
        last = Squeeze (hN, zero)
        y = MatMul (last, w)
    }""",
    {"wx": (1, 128, 16), "wh": (1, 128, 32), "b": (1, 256), "w": (32, 4)},
    {},
)
STATE = {"stateN": "state"}
ORT = {"engine": "onnxruntime", "threads": 1}


def data(count=160, seed=1):
    x = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    return {"x": x, "rate": np.array(16000)}


def by_hand(run, x, rate=16000):
    """The outputs of every step, one run after the other."""
    state, found = np.zeros((2, 1, 32), np.float32), []
    for row in x:
        y, state = run({"x": row[None], "state": state, "rate": np.array(rate)})
        found.append((y, state))
    return found


def sqnr_db(expected, got):
    return 10 * np.log10(np.square(expected).sum() / np.square(expected - got).sum())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return STEPS.save(tmp_path_factory.mktemp("model") / "steps.onnx")


@pytest.fixture(scope="module")
def result(path, tmp_path_factory, short_measuring_in_module):
    out = tmp_path_factory.mktemp("result") / "out"
    return fb.compress(
        path,
        data(),
        eval=data(96, seed=2),
        state=STATE,
        recipe="w8a8",
        max_drop=50,
        prefer="size",
        out=out,
        threads=1,
    )


def test_steps_are_scored_as_one_sequence(result, path):
    """Not as samples that all begin with an empty state; and the state itself is no part of the score."""
    report = result.report
    x = data(96, seed=2)["x"]
    original = literal_session(path, 1)
    expected = np.concatenate([y for y, _ in by_hand(lambda feeds: original.run(feeds).values(), x)])
    got = np.concatenate([y for y, _ in by_hand(lambda feeds: result.model(**feeds), x)])
    assert report.shown.agreement.sqnr_db == pytest.approx(sqnr_db(expected, got), abs=0.2)
    assert 20 < sqnr_db(expected, got) < 60
    assert report.metric.samples == 96


def test_both_engines_run_them(result):
    for engine in ("onnxruntime", "openvino"):
        found = [one for one in result.report.candidates if one.engine == engine and not one.original]
        assert found
        assert all(one.error is None and one.agreement.sqnr_db > 20 for one in found)


def test_the_report_says_how_it_was_run(result):
    report = result.report
    assert report.source.state == STATE
    assert any("'stateN' of each step as 'state' of the next" in note for note in report.notes)
    assert report.sample_shapes == {"x": (1, 16), "state": (2, 1, 32), "rate": ()}
    assert "rate scalar" in report.latency_at


def test_what_is_handed_over_takes_one_step(result):
    y, state = result.model(
        x=np.zeros((1, 16), np.float32), state=np.zeros((2, 1, 32), np.float32), rate=np.array(16000)
    )
    assert y.shape == (1, 4) and state.shape == (2, 1, 32)
    assert "state" in (result.folder / "run.py").read_text()


def test_ranges_are_those_of_running_on(path, tmp_path):
    """Of a state that is carried along, and in the calibration data's order."""
    model = open_model(path)
    samples = open_samples(data(), model.info.inputs, feeding=Feeding(state=STATE))
    model.tapped(["last"], tmp_path / "tapped.onnx")
    session = samples.session(literal_session(tmp_path / "tapped.onnx", 1))
    stats = observe(session, samples, ["last"], ["last"], [], samples.batch)
    original = literal_session(path, 1)
    hidden = np.stack([state[0, 0] for _, state in by_hand(lambda f: original.run(f).values(), data()["x"])])
    assert stats.samples == 160
    assert stats["last"].histogram.minimum == pytest.approx(hidden.min(), abs=1e-6)
    assert stats["last"].histogram.maximum == pytest.approx(hidden.max(), abs=1e-6)
    np.testing.assert_allclose(stats["last"].channel_high, hidden.max(axis=0), atol=1e-6)


def test_without_data_it_runs_on_random_steps(path, tmp_path, short_measuring):
    result = fb.compress(
        path, state=STATE, recipe="w8", max_drop=100, prefer="size", out=tmp_path / "out", **ORT
    )
    assert result.report.metric.samples == 16


def test_the_command_line(command, place, path, short_measuring):
    np.savez(place / "data.npz", **data(), sequence=np.arange(160) // 20)
    answer = command(
        "compress", path, "--data", "data.npz", "--state", "stateN=state", "--recipe", "w8", "--max-drop", "50",
        "--prefer", "size", "--engine", "onnxruntime", "--threads", 1, "--out", "out", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert report["source"]["state"] == STATE
    assert "scored on every fourth sequence of the data, which was kept from calibration" in report["notes"]
    assert report["metric"]["samples"] == 40


def test_comparing_and_measuring_again(result, path):
    compared = compare(path, result.folder, data(96, seed=2), state=STATE, rounds=2)
    assert [one.name for one in compared.outputs] == ["y"]
    assert compared.agreement.sqnr_db == pytest.approx(result.report.shown.agreement.sqnr_db, abs=0.01)
    assert "rate scalar" in measure(result.folder, rounds=2).latency_at


def test_comparing_refuses_what_the_models_do_not_have(refused, path, place):
    np.savez(place / "data.npz", **data())
    line = refused("compare", path, path, "--data", place / "data.npz", "--state", "stateM=state")
    assert "no output 'stateM'" in line


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--state", "stateN"], "--state 'stateN': write it as OUTPUT=INPUT"),
        (
            ["--state", "stateM=state"],
            "no output 'stateM'; it has y, stateN; did you mean 'stateN'?",
        ),
        (["--state", "stateN=stat"], "state: the model has no input 'stat'; it has x, state, rate"),
        (["--state", "y=state"], "the output y float32[N, 4] cannot feed the input state float32[2, N, 32]"),
        (["--state", "stateN=rate"], "cannot feed the input rate int64[]"),
        (["--batch-axis", "x"], "--batch-axis 'x': write it as NAME=AXIS"),
        (["--batch-axis", "x=one"], "'one' is no axis"),
        (["--batch-axis", "y=1"], "batch axis: the model has no input 'y'"),
        (["--batch-axis", "state=3"], "has the axes 0 to 2, but 3 is given"),
        (
            [],
            "['rate', 'x'], but the model's inputs are x float32[N, 16], state float32[2, N, 32], rate int64[]",
        ),
        (["--batch-axis", "state=1"], "['rate', 'x'], but the model's inputs are"),
    ],
)
def test_what_is_wrong_is_one_line(refused, path, place, options, why):
    np.savez(place / "data.npz", **data())
    assert why in refused("compress", path, "--data", place / "data.npz", *options)


def test_a_state_that_does_not_fit_is_one_line(refused, path, place):
    np.savez(place / "data.npz", **data(), state=np.zeros((2, 1, 31), np.float32))
    line = refused("compress", path, "--data", place / "data.npz", "--state", "stateN=state")
    assert "array 'state' has shape [2, 1, 31]" in line


def test_modules_have_no_state_yet():
    import torch

    with pytest.raises(InputError, match="Linear: state and batch axes are for models in files"):
        fb.compress(torch.nn.Linear(4, 4), np.zeros((8, 4), np.float32), state={"a": "b"})
