"""What can be asked of a full-integer file: the types at its ends, wider activations, float where integers end."""

import sys

import numpy as np
import pytest

import fewbits as fb
from fewbits.errors import InputError
from fewbits.models.tflite.load import parse
from fewbits.models.tflite.types import FLOAT32, INT8, INT16, UINT8
from tests.lite import LiteNet, mnist
from tests.stages import sqnr_db, write_files


def images(count=48):
    return np.random.default_rng(5).standard_normal((count, 8, 8, 1)).astype(np.float32)


def ends(path):
    graph = parse(path.read_bytes(), path).subgraphs[0]
    return [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]


@pytest.fixture
def net(tmp_path):
    return mnist().save(tmp_path / "mnist.tflite")


@pytest.mark.parametrize(
    ("recipe", "io", "type"),
    [("w8a8", "int8", INT8), ("w8a8", "uint8", UINT8), ("w8a16", "int16", INT16), ("w8a8", "float", FLOAT32)],
)
def test_inputs_and_outputs_are_of_the_type_asked_for(net, tmp_path, recipe, io, type, short_measuring):
    result = fb.compress(
        net, images(), recipe=recipe, io=io, prefer="size", max_drop="100%", out=tmp_path / "o"
    )
    path = tmp_path / "o" / "mnist.tflite"
    given, made = ends(path)
    assert given.type == made.type == type
    original = fb.compress(net, images(), recipe="original", out=tmp_path / "f").model
    numbers = result.model(images())
    assert numbers.dtype == np.float32, "codes are numbers again in Python"
    assert sqnr_db({"y": original(images())}, {"y": numbers}) > 25
    assert f'io = "{io}"' in (tmp_path / "o" / "recipe.toml").read_text() or io == "float"
    again = fb.compress(
        net,
        images(),
        recipe=str(tmp_path / "o" / "recipe.toml"),
        prefer="size",
        max_drop="100%",
        out=tmp_path / "again",
    )
    assert (again.folder / "mnist.tflite").read_bytes() == path.read_bytes()


def test_uint8_and_int8_ends_differ_by_128_and_nothing_else(net, tmp_path):
    files = {}
    for io in ("int8", "uint8"):
        (folder := tmp_path / io).mkdir()
        files[io] = write_files(net, {"image": images()}, "w8a8", folder, io=io).candidates[0].file.path
    for signed, unsigned in zip(ends(files["int8"]), ends(files["uint8"]), strict=True):
        assert list(signed.quantization.scale) == list(unsigned.quantization.scale)
        assert list(signed.quantization.zeroPoint + 128) == list(unsigned.quantization.zeroPoint)


def test_sixteen_bits_are_closer_than_eight(net, tmp_path):
    kept = {}
    for recipe in ("w8a8", "w8a16"):
        (folder := tmp_path / recipe).mkdir()
        files = write_files(net, {"image": images()}, recipe, folder)
        (one,) = files.candidates
        feeds = {"image": images()}
        assert files.checker(feeds).difference(one) is None
        kept[recipe] = sqnr_db(files.float_outputs(feeds), files.session(one).run(feeds))
    assert kept["w8a16"] > kept["w8a8"] + 2


def test_four_bits_are_two_to_a_byte(net, tmp_path):
    files = write_files(net, {"image": images()}, "w4", tmp_path)
    (one,) = files.candidates
    feeds = {"image": images()}
    assert files.checker(feeds).difference(one) is None
    assert files.run.model.read_back(one.file.path, one.file.plan)["int4"] == (12 * 9 + 10 * 108) // 2
    assert sqnr_db(files.float_outputs(feeds), files.session(one).run(feeds)) > 13


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"recipe": "w8a8", "io": "int16"}, "inputs and outputs in int16 do not go with 8-bit activations"),
        (
            {"recipe": "w8", "io": "int8"},
            "inputs and outputs in int8 need activations in codes: w8a8 or w8a16",
        ),
        ({"recipe": "w8a8", "io": "int4"}, "io is 'int4'; allowed are float, int8, uint8, int16"),
        ({"recipe": "bf16"}, "litert takes weights in int8, int4, fp16, not in bf16"),
        ({"recipe": "w4_g32"}, "litert takes weights with a scale per channel or tensor, not in groups"),
        ({"engine": "openvino"}, "files are not converted to .onnx"),
        ({"format": "onnx"}, "files are not converted to .onnx"),
        ({"format": "pdf"}, "format is 'pdf'; allowed are auto, onnx, tflite"),
        (
            {"format": "tflite", "engine": "openvino"},
            "engine 'openvino' runs .onnx files, and format is 'tflite'",
        ),
    ],
)
def test_what_cannot_be_is_said(net, tmp_path, arguments, words):
    with pytest.raises(InputError) as caught:
        fb.compress(net, images(), out=tmp_path / "o", **arguments)
    assert words in str(caught.value)


def with_a_sine() -> LiteNet:
    net = LiteNet()
    net.input("x", None, 16)
    net.weight("net/a/kernel", 12, 16)
    net.constant("net/a/bias", np.zeros(12))
    a = net.add("FULLY_CONNECTED", ["x", "net/a/kernel", "net/a/bias"], "net/a/Add", None, 12)
    sine = net.add("SIN", [a], "net/wave/Sin", None, 12)
    net.weight("net/b/kernel", 5, 12)
    net.constant("net/b/bias", np.zeros(5))
    return net.output(net.add("FULLY_CONNECTED", [sine, "net/b/kernel", "net/b/bias"], "net/b/Add", None, 5))


def rows(count=64):
    return np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)


@pytest.mark.parametrize(("recipe", "qtype"), [("w8a8", "int8"), ("w8a16", "int16")])
def test_an_operator_without_integers_is_named_with_its_layer(command, place, recipe, qtype):
    with_a_sine().save(place / "sine.tflite")
    np.savez(place / "data.npz", x=rows())
    answer = command("compress", "sine.tflite", "--data", "data.npz", "--recipe", recipe)
    assert answer.code == 2
    assert f"litert has no {qtype} kernel for SIN in layer 'net/wave'" in answer.err
    assert "--float-fallback" in answer.err


def test_float_fallback_leaves_what_has_no_kernel_in_float(command, place, short_measuring):
    path = with_a_sine().save(place / "sine.tflite")
    np.savez(place / "data.npz", x=rows())
    arguments = (
        "--data",
        "data.npz",
        "--recipe",
        "w8a8",
        "--float-fallback",
        "--max-drop",
        "100%",
        "--out",
        "o",
    )
    answer = command("compress", "sine.tflite", *arguments)
    assert answer.code == 0, answer.err
    files = write_files(path, {"x": rows()}, "w8a8", place, float_fallback=True)
    (one,) = files.candidates
    assert files.checker({"x": rows()}).difference(one) is None
    types = files.run.model.read_back(one.file.path, one.file.plan)
    assert types["int8"] == 12 * 16 + 5 * 12


def test_among_all_recipes_those_without_kernels_are_passed_over_with_a_note(tmp_path, short_measuring):
    path = with_a_sine().save(tmp_path / "sine.tflite")
    result = fb.compress(path, rows(), out=tmp_path / "o")
    tried = {candidate.recipe for candidate in result.report.candidates}
    assert tried == {"original", "fp16", "w8", "w4", "w8a8_dynamic"}
    assert sum("SIN in layer" in note for note in result.report.notes) == 2


def masked() -> LiteNet:
    """Minus infinity in the middle, as attention masks have it."""
    net = LiteNet()
    net.input("x", None, 16)
    net.weight("a/kernel", 12, 16)
    net.constant("a/bias", np.zeros(12))
    a = net.add("FULLY_CONNECTED", ["x", "a/kernel", "a/bias"], "a/Add", None, 12)
    net.constant("mask", np.array([0] * 11 + [-np.inf], np.float32))
    net.add("ADD", [a, "mask"], "masked/Add", None, 12)
    return net.output(net.add("SOFTMAX", ["masked/Add"], "probabilities", None, 12, beta=1.0))


def test_minus_infinity_while_calibrating_is_one_line(tmp_path, short_measuring):
    path = masked().save(tmp_path / "masked.tflite")
    with pytest.raises(InputError, match=r"recipe 'w8a8': what 'probabilities' reads is NaN or infinite"):
        fb.compress(path, rows(), recipe="w8a8", out=tmp_path / "o")
    result = fb.compress(
        path, rows(), recipe="w8a8", float_fallback=True, out=tmp_path / "o", max_drop="100%"
    )
    assert result.met


def test_the_inputs_of_a_concatenation_take_its_range(tmp_path):
    net = LiteNet()
    net.input("x", None, 16)
    parts = []
    for name, size in (("a", 3.0), ("b", 0.1)):
        net.constant(f"{name}/kernel", size * net.rng.standard_normal((8, 16)))
        net.constant(f"{name}/bias", np.zeros(8))
        parts.append(
            net.add("FULLY_CONNECTED", ["x", f"{name}/kernel", f"{name}/bias"], f"{name}/Add", None, 8)
        )
    both = net.add("CONCATENATION", parts, "both", None, 16, axis=1)
    net.add(
        "LOGISTIC", [parts[1]], "gate", None, 8
    )  # "b" is read on its own as well, so it keeps its own range
    files = write_files(
        net.output(both, "gate").save(tmp_path / "net.tflite"), {"x": rows()}, "w8a8", tmp_path
    )
    (one,) = files.candidates
    assert files.checker({"x": rows()}).difference(one) is None
    scales = {(p.site.tensor, p.site.range_of): p.scale for p in one.file.plan.activations}
    assert scales["a/Add", "both"] == scales["both", "both"] == scales["b/Add", "both"]
    assert scales["b/Add", "b/Add"] < scales["both", "both"] / 5


def test_rows_of_a_table_are_looked_up_as_codes(tmp_path):
    net = LiteNet()
    net.input("tokens", None, 6, dtype="int32")
    net.constant("table", net.rng.standard_normal((50, 16)))
    found = net.add("GATHER", ["tokens", "table"][::-1], "rows", None, 6, 16, axis=0)
    net.constant("axes", np.array([1], np.int32))
    mean = net.add("MEAN", [found, "axes"], "mean", None, 16)
    net.weight("kernel", 4, 16)
    net.constant("bias", np.zeros(4))
    net.output(net.add("FULLY_CONNECTED", [mean, "kernel", "bias"], "y", None, 4))
    feeds = {"tokens": np.random.default_rng(0).integers(0, 50, (64, 6)).astype(np.int32)}
    for recipe in ("w8a8", "w8", "w4", "fp16"):
        (folder := tmp_path / recipe).mkdir()
        files = write_files(net.save(tmp_path / "net.tflite"), feeds, recipe, folder)
        (one,) = files.candidates
        assert files.checker(feeds).difference(one) is None, recipe
        types = files.run.model.read_back(one.file.path, one.file.plan)
        assert "float32" not in types or types["float32"] <= 4 * 4, recipe


def test_a_generator_function_of_lists_or_dicts_is_data(net, tmp_path, short_measuring):
    def lists():
        for image in images():
            yield [image[None]]

    def dicts():
        for image in images():
            yield {"image": image[None]}

    made = [
        fb.compress(net, data, recipe="w8a8", prefer="size", max_drop="100%", out=tmp_path / name)
        for name, data in (("a", lists), ("b", dicts), ("c", images()))
    ]
    contents = [(one.folder / "mnist.tflite").read_bytes() for one in made]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((4, 9, 9, 1), np.float32), "has shape [4, 9, 9, 1]"),
        (np.zeros((0, 8, 8, 1), np.float32), "no samples"),
        (np.full((8, 8, 8, 1), np.nan, np.float32), "NaN or Inf"),
        (np.full((8, 8, 8, 1), -np.inf, np.float32), "NaN or Inf"),
        (lambda: iter(()), "no samples"),
        (lambda: iter([[np.zeros((1, 8, 8, 1), np.float32)] * 3]), "3 items"),
    ],
)
def test_bad_calibration_data_is_one_line(net, tmp_path, data, words):
    with pytest.raises(InputError) as caught:
        fb.compress(net, data, recipe="w8a8", out=tmp_path / "o")
    assert words in str(caught.value)


def two_inputs() -> LiteNet:
    """A sum of two dense layers, one of each input."""
    net = LiteNet()
    parts = []
    for name, size in (("left", 16), ("right", 6)):
        net.input(name, None, size)
        net.weight(f"{name}/kernel", 12, size)
        net.constant(f"{name}/bias", np.zeros(12))
        parts.append(
            net.add("FULLY_CONNECTED", [name, f"{name}/kernel", f"{name}/bias"], f"{name}/Add", None, 12)
        )
    return net.output(net.add("ADD", parts, "both", None, 12))


def test_a_generator_function_feeds_several_inputs_in_order_or_by_name(tmp_path, short_measuring):
    path = two_inputs().save(tmp_path / "two.tflite")
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((48, 1, size)).astype(np.float32) for size in (16, 6))

    def lists():
        yield from map(list, zip(left, right, strict=True))

    def dicts():
        for one, other in zip(left, right, strict=True):
            yield {"right": other, "left": one}

    made = [
        fb.compress(path, data, recipe="w8a8", prefer="size", max_drop="100%", out=tmp_path / name)
        for name, data in (("a", lists), ("b", dicts), ("c", {"left": left[:, 0], "right": right[:, 0]}))
    ]
    contents = [(one.folder / "two.tflite").read_bytes() for one in made]
    assert contents[0] == contents[1] == contents[2]
    with pytest.raises(InputError, match=r"array 'left' has shape \[1, 6\]"):
        fb.compress(path, lambda: ([b, a] for a, b in lists()), recipe="w8a8", out=tmp_path / "o")


def test_a_shape_that_the_interpreter_cannot_resolve_is_one_line(refused, place):
    net = LiteNet()
    net.input("x", None, 16)
    net.weight("net/kernel", 12, 16)
    net.constant("net/bias", np.zeros(12))
    dense = net.add("FULLY_CONNECTED", ["x", "net/kernel", "net/bias"], "net/Add", None, 12)
    net.constant("shape", np.array([-1, 7], np.int32))  # 12 to a sample are not rows of 7
    net.output(net.add("RESHAPE", [dense, "shape"], "rows", None, 7)).save(place / "open.tflite")
    np.savez(place / "data.npz", x=rows(8))
    said = refused("compress", "open.tflite", "--data", "data.npz", "--recipe", "w8a8", "--out", "o")
    assert "open.tflite: no engine can run the original" in said and "(inputs given: x [" in said


def test_a_file_cut_short_is_refused_and_without_litert_its_command_is_said(refused, place, monkeypatch):
    path = mnist().save(place / "net.tflite")
    (place / "cut.tflite").write_bytes(path.read_bytes()[:-500])
    said = refused("compress", "cut.tflite", "--out", "o")
    assert "cut.tflite: not a readable TensorFlow Lite model" in said and "cut short" in said
    monkeypatch.setitem(sys.modules, "ai_edge_litert.tools", None)
    said = refused("compress", "net.tflite", "--out", "o")
    assert said.endswith("run: pip install 'fewbits[tflite]'")
