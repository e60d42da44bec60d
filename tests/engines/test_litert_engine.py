"""LiteRT: names, shapes, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from fewbits.engines.engine import EngineSettings, available, engines_for, get, literal_session
from fewbits.errors import EngineError, InputError
from tests.lite import LiteNet, mnist

SETTINGS = EngineSettings("litert", "f32", 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return mnist().save(tmp_path_factory.mktemp("lite") / "mnist.tflite")


def images(count):
    return {"image": np.random.default_rng(0).standard_normal((count, 8, 8, 1)).astype(np.float32)}


def test_it_is_known_for_its_own_format_only():
    assert "litert" not in available()
    assert list(available("tflite")) == ["litert"]
    assert get("litert").version[0].isdigit()
    assert get("litert").precisions(None) == ("f32",)


def test_an_engine_for_other_files_is_refused_by_name():
    with pytest.raises(
        InputError, match=r"engine 'openvino' runs .onnx files, and this is a .tflite: use litert"
    ):
        engines_for("tflite", "openvino")


def test_names_are_those_of_the_signature(path):
    session = get("litert").compile(path, SETTINGS)
    assert session.input_names == ("image",)
    assert session.output_names == ("logits",)


def test_without_a_signature_names_are_those_of_the_tensors(tmp_path):
    net = LiteNet()
    net.add("ABS", [net.input("x", None, 3)], "y", None, 3)
    session = get("litert").compile(net.output("y").save(tmp_path / "plain.tflite"), SETTINGS)
    got = session.run({"x": np.array([[-1, 2, -3]], np.float32)})
    assert got["y"].tolist() == [[1, 2, 3]]


def test_any_number_of_samples_one_after_the_other(path):
    session = get("litert").compile(path, SETTINGS, {"image": (2, 8, 8, 1)})
    plain = literal_session(path, 1)
    for count in (2, 5, 1, 2):
        got, expected = session.run(images(count))["logits"], plain.run(images(count))["logits"]
        assert got.shape == (count, 10)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_what_was_given_is_not_overwritten_by_the_next_run(path):
    session = get("litert").compile(path, SETTINGS)
    first = session.run(images(1))["logits"]
    kept = first.copy()
    session.run({"image": np.zeros((1, 8, 8, 1), np.float32)})
    assert np.array_equal(first, kept)


def test_wrong_names_and_types_are_refused(path):
    session = get("litert").compile(path, SETTINGS)
    with pytest.raises(InputError, match="has the inputs image; received picture"):
        session.run({"picture": images(1)["image"]})
    with pytest.raises(InputError, match="input 'image' takes float32, received float64"):
        session.run({"image": images(1)["image"].astype(np.float64)})


def test_a_shape_that_the_file_does_not_take_is_one_line(path):
    with pytest.raises(EngineError, match=r"litert cannot compile .*mnist\.tflite"):
        get("litert").compile(path, SETTINGS, {"image": (1, 9, 9, 1)})


def test_files_that_are_none_are_refused_in_one_line(tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"not a model at all")
    with pytest.raises(EngineError, match=r"litert cannot read .*broken\.tflite"):
        get("litert").compile(broken, SETTINGS)
    with pytest.raises(InputError, match="no such file"):
        get("litert").compile(tmp_path / "none.tflite", SETTINGS)


def test_other_precisions_are_refused(path):
    with pytest.raises(EngineError, match="litert runs in f32"):
        get("litert").compile(path, EngineSettings("litert", "bf16", 1))


def test_the_snippet_runs_without_fewbits(path):
    lines = SETTINGS.snippet(path)
    script = "\n".join(
        (
            "import numpy as np",
            "feeds = {'image': np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)}",
            lines,
            "print(outputs[0].sum())",
        )
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    expected = get("litert").compile(path, SETTINGS).run(images(3))["logits"].sum()
    assert float(done.stdout) == pytest.approx(float(expected), abs=1e-4)
