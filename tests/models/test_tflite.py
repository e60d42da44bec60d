"""TensorFlow Lite files in every form: written, read back, run, and compared with the plan and the original."""

import numpy as np
import pytest

from fewbits.errors import InputError, VerificationError
from fewbits.models.tflite.load import parse
from fewbits.models.tflite.types import FLOAT32, INT8
from tests.lite import RELU, SAME, LiteNet, mnist
from tests.stages import sqnr_db, write_files

LEAST_DB = {"fp16": 60, "w8": 36, "w8a8_dynamic": 30, "w8a8": 28}
"""What each preset must keep of weights drawn from a normal distribution."""


def residual() -> LiteNet:
    """Convolutions with padding and strides, a depthwise one, a sum with a constant and of two branches, softmax."""
    net = LiteNet(1)
    net.input("x", None, 12, 12, 3)
    net.weight("a/kernel", 8, 3, 3, 3)
    net.constant("a/bias", net.rng.standard_normal(8) / 10)
    strided = {"padding": SAME, "strideW": 2, "strideH": 2}
    a = net.add(
        "CONV_2D",
        ["x", "a/kernel", "a/bias"],
        "a/Relu",
        None,
        6,
        6,
        8,
        **strided,
        fusedActivationFunction=RELU,
    )
    net.constant("b/kernel", net.rng.standard_normal((1, 3, 3, 8)) / 3)
    net.constant("b/bias", np.zeros(8, np.float32))
    plain = {"padding": SAME, "strideW": 1, "strideH": 1}
    b = net.add(
        "DEPTHWISE_CONV_2D", [a, "b/kernel", "b/bias"], "b/Conv", None, 6, 6, 8, **plain, depthMultiplier=1
    )
    net.constant("shift", net.rng.standard_normal(8))
    moved = net.add("ADD", [b, "shift"], "shifted", None, 6, 6, 8)
    both = net.add("ADD", [a, moved], "sum", None, 6, 6, 8)
    net.constant("axes", np.array([1, 2], np.int32))
    mean = net.add("MEAN", [both, "axes"], "mean", None, 8)
    net.weight("head/kernel", 5, 8)
    net.constant("head/bias", net.rng.standard_normal(5) / 10)
    head = net.add("FULLY_CONNECTED", [mean, "head/kernel", "head/bias"], "head/Dense", None, 5)
    net.add("SOFTMAX", [head], "probabilities", None, 5, beta=1.0)
    return net.output("probabilities", "head/Dense")


NETS = {"mnist": (mnist, "image", (8, 8, 1)), "residual": (residual, "x", (12, 12, 3))}


def samples(name, count=32):
    _, key, shape = NETS[name]
    return {key: np.random.default_rng(5).standard_normal((count, *shape)).astype(np.float32)}


def written(name, recipe, folder):
    path = NETS[name][0]().save(folder / f"{name}.tflite")
    return write_files(path, samples(name), recipe, folder)


def types(path):
    """Names of operators, and types of what they read and make, without constants."""
    model = parse(path.read_bytes(), path)
    graph = model.subgraphs[0]
    return {
        (operator.opcodeIndex, graph.tensors[index].type)
        for operator in graph.operators
        for index in (*operator.inputs, *operator.outputs)
        if model.buffers[graph.tensors[index].buffer].data is None
    }


@pytest.mark.parametrize("recipe", LEAST_DB)
@pytest.mark.parametrize("name", NETS)
def test_written_read_back_and_right(name, recipe, tmp_path):
    files = written(name, recipe, tmp_path)
    feeds = samples(name)
    expected = files.float_outputs(feeds)
    (one,) = files.candidates
    got = files.session(one).run(feeds)
    assert list(got) == list(expected)
    assert all(array.dtype == np.float32 for array in got.values())
    assert sqnr_db(expected, got) >= LEAST_DB[recipe]
    assert files.checker(feeds).difference(one) is None


@pytest.mark.parametrize("name", NETS)
def test_full_integer_has_floats_at_its_ends_only(name, tmp_path):
    files = written(name, "w8a8", tmp_path)
    model = parse(files.candidates[0].file.path.read_bytes(), tmp_path)
    graph = model.subgraphs[0]
    floats = {index for index, tensor in enumerate(graph.tensors) if tensor.type == FLOAT32}
    assert floats == {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        kind = model.operatorCodes[operator.opcodeIndex].builtinCode
        converts = floats.intersection((*operator.inputs, *operator.outputs))
        assert bool(converts) == (kind in (6, 114)), (
            "floats are read by QUANTIZE and made by DEQUANTIZE alone"
        )


def test_other_batch_sizes_and_static_shapes(tmp_path):
    files = written("mnist", "w8a8", tmp_path)
    (one,) = files.candidates
    session = files.session(one)
    all_at_once = session.run(samples("mnist", 5))["logits"]
    one_by_one = [session.run({"image": image[None]})["logits"] for image in samples("mnist", 5)["image"]]
    assert np.array_equal(all_at_once, np.concatenate(one_by_one))


def test_every_constant_tampered_with_is_found(tmp_path):
    files = written("residual", "w8a8", tmp_path)
    path, plan = files.candidates[0].file.path, files.candidates[0].file.plan
    data = path.read_bytes()
    model = parse(data, path)
    tampered = 0
    for buffer in model.buffers:
        if buffer.data is None or len(buffer.data) < 4:
            continue
        place = data.index(bytes(buffer.data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(VerificationError):
            files.run.model.read_back(path, plan)
        tampered += 1
    assert tampered > 5
    path.write_bytes(data)
    assert files.run.model.read_back(path, plan)["int8"] > 0


def test_weights_in_codes_are_int8_and_biases_int32(tmp_path):
    files = written("mnist", "w8a8", tmp_path)
    path = files.candidates[0].file.path
    by_type = files.run.model.read_back(path, files.candidates[0].file.plan)
    assert by_type["int8"] == 12 * 9 + 10 * 108
    assert by_type["int32"] == 4 * (12 + 10 + 2)
    assert "float32" not in by_type


def test_every_shorter_file_is_refused_in_one_line(tmp_path):
    data = mnist().bytes()
    path = tmp_path / "short.tflite"
    for end in [0, 1, 7, 8, *range(9, len(data) - 1, 97)]:
        with pytest.raises(InputError, match=r"short.tflite: not a (readable )?TensorFlow Lite model"):
            parse(data[:end], path)


def test_weights_that_are_not_finite_are_named(tmp_path):
    net = mnist()
    net.model.buffers[1].data = net.model.buffers[1].data.copy()
    net.model.buffers[1].data[:4] = np.array([np.nan], np.float32).view(np.uint8)
    with pytest.raises(InputError, match=r"weight 'net/conv/kernel' has nan at index \[0, 0, 0, 0\]"):
        write_files(net.save(tmp_path / "nan.tflite"), samples("mnist"), "w8", tmp_path)


def test_layers_are_called_what_a_person_calls_them(tmp_path):
    files = written("mnist", "w8", tmp_path)
    assert [layer.name for layer in files.run.model.info.layers] == ["net/conv", "net/dense"]


def test_excluded_layer_stays_in_float_and_the_rest_runs_on_codes(tmp_path):
    path = mnist().save(tmp_path / "m.tflite")
    files = write_files(path, samples("mnist"), "w8a8", tmp_path, exclude=["net/conv"])
    feeds = samples("mnist")
    (one,) = files.candidates
    assert files.checker(feeds).difference(one) is None
    graph = files.run.model
    by_type = graph.read_back(one.file.path, one.file.plan)
    assert by_type["int8"] == 10 * 108 and by_type["float32"] == 4 * (12 * 9 + 12)


def test_int8_type_is_what_the_schema_says():
    assert (FLOAT32, INT8) == (0, 9)
