"""Keras models in: converted in a process of their own, compared with Keras, compressed for both formats."""

import importlib.util
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault(
    "KERAS_BACKEND", "torch"
)  # models in memory need no TensorFlow here, and it is slow to import
keras = pytest.importorskip("keras", reason="needs Keras and TensorFlow: pip install 'fewbits[keras]'")
pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'fewbits[tflite]'")
if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("needs TensorFlow: pip install 'fewbits[keras]'", allow_module_level=True)

import fewbits as fb
from fewbits.engines.engine import literal_session
from fewbits.errors import InputError
from fewbits.from_keras import from_keras, is_keras
from fewbits.models import conversion
from fewbits.models.keras.convert import convert
from fewbits.report.record import Report


def net():
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(12, 3, activation="relu")(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.MaxPooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)), name="net")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "net.keras"
    net().save(path)
    return path


def images(count=64):
    return np.random.default_rng(0).standard_normal((count, 8, 8, 1)).astype(np.float32)


def test_a_keras_file_comes_out_as_full_integer(command, place, saved, short_measuring):
    np.savez(place / "data.npz", image=images())
    answer = command(
        "compress", saved, "--data", "data.npz", "--recipe", "w8a8", "--out", "o", "--max-drop", "100%"
    )
    assert answer.code == 0, answer.err
    loaded = fb.load(place / "o")
    assert loaded.path.name == "net.tflite"
    expected = np.asarray(keras.ops.convert_to_numpy(net()(images())))
    got = loaded(images())
    assert got.shape == expected.shape
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_model_in_memory_comes_out_as_onnx(tmp_path, short_measuring):
    model = net()
    result = fb.compress(
        model, images(), format="onnx", engine="onnxruntime", recipe="w8", out=tmp_path / "o"
    )
    assert result.report.source.format == "keras"
    assert result.report.files[0].path == "net.onnx"
    expected = np.asarray(keras.ops.convert_to_numpy(model(images())))
    np.testing.assert_allclose(result.model(images()), expected, atol=0.05)


def recurrent():
    keras.utils.set_random_seed(0)
    x = keras.Input((12, 6), name="frames")
    both = keras.layers.GRU(16)(keras.layers.LSTM(16, return_sequences=True)(x))
    return keras.Model(x, keras.layers.Dense(5)(both), name="recurrent")


@pytest.mark.parametrize("make", [net, recurrent])
def test_a_keras_file_runs_in_onnx_runtime_and_openvino(command, place, make, short_measuring):
    model = make()
    model.save(place / "m.keras")
    (given,) = model.inputs
    samples = np.random.default_rng(0).standard_normal((48, *given.shape[1:])).astype(np.float32)
    np.savez(place / "data.npz", **{given.name: samples})
    arguments = ("--format", "onnx", "--recipe", "w8a8", "--max-drop", "100%", "--out", "o", "--json")
    answer = command("compress", "m.keras", "--data", "data.npz", *arguments)
    assert answer.code == 0, answer.err
    found = Report.from_json(answer.out).candidates
    assert not [one.error for one in found if one.error]
    for recipe in ("original", "w8a8"):
        assert {one.engine for one in found if one.recipe == recipe} == {"onnxruntime", "openvino"}
    assert all(one.agreement.sqnr_db is None or one.agreement.sqnr_db > 20 for one in found)
    loaded = fb.load(place / "o")
    assert loaded.path.name == "m.onnx"
    expected = np.asarray(keras.ops.convert_to_numpy(model(samples)))
    assert np.corrcoef(loaded(samples).ravel(), expected.ravel())[0, 1] > 0.99


def test_several_inputs_and_outputs_keep_their_names_and_order(tmp_path):
    a, b = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    both = keras.layers.Concatenate()([a, b])
    outputs = [keras.layers.Dense(5)(both), keras.layers.Dense(2)(both)]
    path, _ = from_keras(keras.Model([a, b], outputs, name="two"), "tflite", tmp_path)
    session = literal_session(path, 1)
    assert set(session.input_names) == {"left", "right"}
    feeds = {"left": np.ones((1, 4), np.float32), "right": np.ones((1, 3), np.float32)}
    assert sorted(array.shape for array in session.run(feeds).values()) == [(1, 2), (1, 5)]


def test_layers_of_your_own_in_memory_need_the_backend_that_traces_them(tmp_path):
    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    x = keras.Input((4,))
    with pytest.raises(InputError, match="it has layers of your own"):
        from_keras(keras.Model(x, Twice()(x), name="own"), "tflite", tmp_path)


def test_an_operator_that_the_format_lacks_is_named(tmp_path):
    x = keras.Input((4, 4))
    model = keras.Model(x, keras.ops.linalg.inv(x), name="inverse")
    with pytest.raises(InputError, match=r"inverse.*TensorFlow Lite has no operator for .*MatrixInverse"):
        from_keras(model, "tflite", tmp_path)


def test_a_converter_that_hangs_crashes_or_eats_memory_is_one_line(saved, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "TIME_LIMIT_S", 0.01)
        with pytest.raises(InputError, match=r"net\.keras: the converter was not done in 0\.01 s"):
            convert(saved, "onnx", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "MEMORY_LIMIT", 0)
        patch.setattr(conversion, "MEMORY_TIMES", 0)
        with pytest.raises(InputError, match=r"net\.keras: .*(memory|crashed|cannot)"):
            convert(saved, "onnx", tmp_path)


def test_is_keras_asks_nothing_of_other_models(tmp_path):
    assert is_keras("net.keras") and is_keras(net())
    assert not is_keras("net.onnx") and not is_keras(np.zeros(3))


def test_the_walk_through_makes_every_form(tmp_path, monkeypatch, capsys, shared_data, short_measuring):
    if not list(shared_data.glob("mnist_t10k*")):
        pytest.skip(f"MNIST's test images are not in {shared_data}")
    pytest.importorskip("plotly", reason="the example's picture needs plotly")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tflite_mnist.py", str(shared_data), "1"])
    example = Path(__file__).parents[1] / "examples" / "tflite_mnist.py"
    found = runpy.run_path(str(example), run_name="__main__")
    bytes_of = {words: one.size_bytes for words, one in found["rows"]}
    assert list(bytes_of) == list(found["FORMS"].values())
    assert (
        bytes_of["weights only, 4 bits"] < 15_000 < bytes_of["full integer"] < 0.3 * bytes_of["plain float"]
    )
    assert all(one.metric > 80 and one.latency_ms.p50 > 0 for _, one in found["rows"])
    text = capsys.readouterr().out
    assert all(words in text for words in bytes_of)
    assert "full integer" in (tmp_path / "mnist_forms.html").read_text(encoding="utf-8")
