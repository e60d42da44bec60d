"""Real models, as published: written, read back, run in both engines, and held against the plan."""

import json
import wave

import numpy as np
import pytest

import fewbits as fb
from fewbits.engines.engine import EngineSettings, literal_session
from fewbits.errors import InputError
from fewbits.feeding import Feeding
from fewbits.measure.size import artifact_bytes
from fewbits.models.model import open_model
from tests.models.cifar import images, resnet20
from tests.stages import sqnr_db, write_files

ORT = EngineSettings("onnxruntime", "f32", 1)


def file(folder, name):
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


def check(files, feeds, least_db, share):
    """Every candidate in its engine, against the original and against the plan."""
    expected, checker = files.float_outputs(feeds), files.checker({k: v[:4] for k, v in feeds.items()})
    assert {one.settings.engine for one in files.candidates} == {"onnxruntime", "openvino"}
    for one in files.candidates:
        assert sqnr_db(expected, files.session(one).run(feeds)) > least_db, one.name
        assert checker.difference(one) is None, one.name
        assert artifact_bytes(one.file.path) < share * artifact_bytes(files.run.model.path)


def test_magika_w8(shared_data, tmp_path):
    """A classifier of files: an embedding, dense layers, and convolutions along the sequence."""
    path = file(shared_data, "magika_v3_3.onnx")
    with np.load(file(shared_data, "magika_labelled_files.npz")) as arrays:
        feeds, labels = {"bytes": arrays["bytes"][::4]}, arrays["labels"][::4]
    files = write_files(path, feeds, "w8", tmp_path)
    check(files, feeds, 20, 0.45)
    for one in files.candidates:
        (scores,) = files.session(one).run(feeds).values()
        assert (scores.argmax(axis=1) == labels).mean() > 0.9


def test_resnet20_w8a8(shared_data, tmp_path):
    weights = file(shared_data, "resnet20_cifar10.safetensors")
    path = resnet20(weights, tmp_path / "resnet20.onnx")
    calibration, _ = images(file(shared_data, "cifar10_jpeg_train10k.npz"), 0, 64)
    x, labels = images(file(shared_data, "cifar10_jpeg_test.npz"), 0, 200)
    files = write_files(path, {"x": calibration}, "w8a8", tmp_path)
    check(files, {"x": x}, 22, 0.4)
    (logits,) = files.float_outputs({"x": x}).values()
    right = (logits.argmax(axis=1) == labels).mean()
    assert right > 0.83
    for one in files.candidates:
        (logits,) = files.session(one).run({"x": x}).values()
        assert (logits.argmax(axis=1) == labels).mean() > right - 0.03
    names = [layer.name for layer in files.run.model.info.layers]
    assert "layer2.0.conv1" in names


def speech_steps(folder):
    """What Silero VAD reads in each step: 64 samples of the step before, and 512 new ones; float32 [1875, 576]."""
    with wave.open(str(file(folder, "speech_16k.wav"))) as speech:
        samples = np.frombuffer(speech.readframes(speech.getnframes()), np.int16).astype(np.float32) / 2**15
    padded = np.concatenate([np.zeros(64, np.float32), samples])
    return np.stack([padded[at : at + 576] for at in range(0, len(samples), 512)])


def probabilities(session, steps):
    """Of speech in each step, with the state of the step before."""
    state, found = np.zeros((2, 1, 128), np.float32), []
    for window in steps:
        answer = session.run({"input": window[None], "state": state, "sr": np.array(16000)})
        state = answer["stateN"]
        found.append(answer["output"][0, 0])
    return np.array(found)


def test_silero_w8(shared_data, tmp_path, short_measuring):
    """A detector of speech: an LSTM whose gates are put in order inside an If, a scalar, a state that goes on."""
    path = file(shared_data, "silero_vad_16k.onnx")
    found = {layer.op: layer for layer in fb.inspect(path).layers}
    assert found["LSTM"].params == 2 * 512 * 128
    steps = speech_steps(shared_data)
    data = {"input": steps[:300], "sr": np.array(16000)}
    result = fb.compress(
        path, data, state={"stateN": "state"}, recipe="w8", prefer="size", threads=1, out=tmp_path / "out"
    )
    report = result.report
    assert report.saved == "w8 ort f32"
    assert report.shown.size_ratio <= 0.31
    assert {layer.bits for layer in report.layers} == {8}
    assert len(report.layers) == 7
    assert any(note.startswith("openvino is out: openvino cannot read") for note in report.notes)
    scored = steps[300:1000]
    before = probabilities(literal_session(path, 1), scored)
    after = probabilities(result.model.session, scored)
    assert before.max() > 0.9
    assert np.abs(before - after).mean() <= 0.003
    assert ((before > 0.5) != (after > 0.5)).sum() <= 5


def test_silero_on_codes(shared_data, tmp_path):
    """Its LSTM as well, in ONNX Runtime; written in fewer bits without data, and without a sound."""
    path = file(shared_data, "silero_vad_16k.onnx")
    feeding = Feeding(state={"stateN": "state"})
    steps = speech_steps(shared_data)[:700]
    data = {"input": steps[:60], "sr": np.array(16000)}
    files = write_files(path, data, "w8a8_dynamic", tmp_path, "onnxruntime", feeding=feeding)
    (one,) = files.candidates
    assert files.checker(data).difference(one) is None
    before = probabilities(literal_session(path, 1), steps)
    after = probabilities(files.session(one), steps)
    assert np.abs(before - after).mean() <= 0.006


def test_silero_without_data_is_refused_in_one_line(shared_data):
    """Its lengths are open, and not every length can be run."""
    with pytest.raises(InputError, match="no engine can run the original"):
        fb.compress(file(shared_data, "silero_vad_16k.onnx"), recipe="w8", threads=1)


def test_magikas_configuration_has_its_classes(shared_data):
    config = json.loads(file(shared_data, "magika_v3_3_config.json").read_text())
    info = open_model(file(shared_data, "magika_v3_3.onnx")).info
    assert info.outputs[0].shape[-1] == len(config["target_labels_space"])
