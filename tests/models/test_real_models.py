"""Real models, as published: written, read back, run in both engines, and held against the plan."""

import itertools
import json
import wave

import numpy as np
import onnx
import pytest

import fewbits as fb
from fewbits.engines.engine import EngineSettings, literal_session
from fewbits.errors import InputError
from fewbits.feeding import Feeding
from fewbits.measure.size import artifact_bytes
from fewbits.models.model import open_model
from tests.stages import sqnr_db, write_files

ORT = EngineSettings("onnxruntime", "f32", 1)
IMAGE_MEAN, IMAGE_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def resnet20(weights, path):
    """The CIFAR ResNet-20 of He et al. 2015: shortcuts take every other place, and pad channels with zeros."""
    from safetensors.numpy import load_file

    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    stored = {name: array for name, array in load_file(weights).items() if array.dtype == np.float32}
    nodes, constants = [], dict(stored)

    def node(op, inputs, name, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(name, array):
        constants[name] = np.array(array)
        return name

    def conv_bn(value, conv, norm, stride=1):
        given = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
        y = node("Conv", [value, f"{conv}.weight"], f"{conv}.y", **given)
        statistics = [f"{norm}.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
        return node("BatchNormalization", [y, *statistics], f"{norm}.y")

    x = node("Relu", [conv_bn("x", "conv1", "bn1")], "relu1")
    for layer, block in itertools.product((1, 2, 3), (0, 1, 2)):
        name = f"layer{layer}.{block}"
        stride = 2 if layer > 1 and block == 0 else 1
        y = node("Relu", [conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride)], f"{name}.relu1")
        y = conv_bn(y, f"{name}.conv2", f"{name}.bn2")
        if stride == 2:
            ends = [constant(f"{name}.{key}", np.array(v)) for key, v in (("from", [0, 0]), ("to", [99, 99]))]
            axes = [
                constant(f"{name}.{key}", np.array(v)) for key, v in (("axes", [2, 3]), ("steps", [2, 2]))
            ]
            more = 8 * (layer - 1)
            pads = constant(f"{name}.pads", np.array([0, more, 0, 0, 0, more, 0, 0]))
            x = node("Pad", [node("Slice", [x, *ends, *axes], f"{name}.every"), pads], f"{name}.skip")
        x = node("Relu", [node("Add", [y, x], f"{name}.sum")], f"{name}.relu2")
    flat = node("Flatten", [node("GlobalAveragePool", [x], "pooled")], "flat")
    node("Gemm", [flat, "linear.weight", "linear.bias"], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "resnet20",
        [helper.make_tensor_value_info("x", float_type, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", float_type, ["batch", 10])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def images(path, start, count):
    with np.load(path) as arrays:
        x, labels = arrays["x"][start : start + count], arrays["labels"][start : start + count]
    x = (x.astype(np.float32) / 255 - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_SPREAD)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), labels


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
    result = fb.compress(path, data, state={"stateN": "state"}, recipe="w8", threads=1, out=tmp_path / "out")
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
