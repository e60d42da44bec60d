"""What is wrong with a written file is found: by reading it back, or by running it against the plan's arithmetic."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewbits.candidates import Candidate
from fewbits.engines.engine import EngineSettings
from fewbits.errors import VerificationError
from fewbits.verify import Checker
from tests.stages import write_files
from tests.tiny import ATTENTION, CONV_BN, EMBEDDING, GEMM, IF_LSTM, LOOP, LSTM, MATMUL_ADD, Tiny, bodies

ASYMMETRIC = """name = "asymmetric"
[[rules]]
match = "*"
weights = {qtype = "int8", per = "channel", symmetric = false}
"""
OUTLIERS = Tiny(
    """g (float[N, 24, 32] x) => (float[N, 24, 32] y) {
        s = Mul (x, large)
        a = MatMul (s, w1)
        b = Add (a, b1)
        r = Relu (b)
        y = MatMul (r, w2)
    }""",
    {"w1": (32, 32), "b1": (32,), "w2": (32, 32)},
    {"x": ((24, 32), None)},
    {"large": np.append(np.full(2, 60, np.float32), np.ones(30, np.float32))},
)
"""Two channels so large that they are smoothed; square weights, which look right when they are turned over."""

TWICE = Tiny(
    """g (float[N, 32] x) => (float[N, 32] y) {
        a = Gemm <transB = 1> (x, w, b)
        r = Relu (a)
        y = Gemm <transB = 1> (r, w, b)
    }""",
    {"w": (32, 32), "b": (32,)},
    {"x": ((32,), None)},
)
"""A weight with two readers is not turned while folding."""

CASES = {
    "convolutions w8": (CONV_BN, "w8"),
    "convolutions w8a8": (CONV_BN, "w8a8"),
    "convolutions fp16": (CONV_BN, "fp16"),
    "linear w4": (MATMUL_ADD, "w4_g32"),
    "linear bf16": (MATMUL_ADD, "bf16"),
    "linear w8 with zero points": (MATMUL_ADD, ASYMMETRIC),
    "linear w8a8_dynamic": (GEMM, "w8a8_dynamic"),
    "twice the same, w8a8_dynamic": (TWICE, "w8a8_dynamic"),
    "smoothed w8a8": (OUTLIERS, "w8a8"),
    "smoothed w8": (OUTLIERS, "w8"),
    "embedding w8": (EMBEDDING, "w8"),
    "attention w8a8": (ATTENTION, "w8a8"),
    "recurrent w8": (LSTM, "w8"),
    "recurrent w8a8_dynamic": (LSTM, "w8a8_dynamic"),
    "in branches w8": (IF_LSTM, "w8"),
    "in a loop w4": (LOOP, "w4_g32"),
}


def constants(proto):
    """Every constant of a file, in bodies too."""
    return [tensor for graph in (proto.graph, *bodies(proto.graph)) for tensor in graph.initializer]


@dataclass
class Case:
    """A file as it was written, and what holds it against its plan."""

    model: object
    candidate: Candidate
    checker: Checker
    proto: onnx.ModelProto

    @property
    def path(self):
        return self.candidate.file.path

    def found(self, changed: onnx.ModelProto) -> str | None:
        """What is said of a changed file; None where nothing is noticed."""
        path = self.path.with_name("changed.onnx")
        onnx.save(changed, path)
        try:
            self.model.read_back(path, self.candidate.file.plan)
        except VerificationError as error:
            return str(error)
        # The plan's own arithmetic is remembered by path, and is the same for both.
        original = self.candidate.file
        self.checker._spelled_out[path] = self.checker._expected(self.candidate)
        return self.checker.difference(replace(self.candidate, file=replace(original, path=path)))

    def copy(self) -> onnx.ModelProto:
        changed = onnx.ModelProto()
        changed.CopyFrom(self.proto)
        return changed


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}

    def case(name, engine="onnxruntime") -> Case:
        if (name, engine) not in made:
            tiny, recipe = CASES[name]
            folder = tmp_path_factory.mktemp("case")
            if recipe == ASYMMETRIC:
                recipe = folder / "recipe.toml"
                recipe.write_text(ASYMMETRIC)
            feeds = tiny.samples(16)
            files = write_files(tiny.save(folder / "model.onnx"), feeds, str(recipe), folder, engine)
            candidate = files.candidates[0]
            checker = files.checker({key: array[:4] for key, array in feeds.items()})
            made[name, engine] = Case(files.run.model, candidate, checker, onnx.load(candidate.file.path))
        return made[name, engine]

    return case


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", CASES)
def test_an_untouched_file_passes(cases, name, engine):
    one = cases(name, engine)
    assert one.found(one.copy()) is None


def test_the_cases_hold_every_kind_of_constant(cases):
    kinds = {tensor.name.rsplit("_", 1)[-1] for name in CASES for tensor in constants(cases(name).proto)}
    assert {
        "codes",
        "scale",
        "step",
        "point",
        "offset",
        "fp16",
        "bf16",
        "smoothing",
        "turned",
        "each",
    } <= kinds
    stored = {tensor.data_type for name in CASES for tensor in constants(cases(name).proto)}
    assert {
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT4,
        TensorProto.INT32,
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
    } <= stored


# --- constants --------------------------------------------------------------------------------------------------


def changed_element(tensor, index):
    """The tensor with one element moved to the next number it can hold."""
    array = numpy_helper.to_array(tensor).copy()
    flat = array.reshape(-1)
    at = index % flat.size
    if flat.dtype.kind in "iu" or tensor.data_type == TensorProto.INT4:
        flat[at] = flat[at] + 1 if flat[at] < 5 else flat[at] - 1
    else:
        bits = flat.view(np.uint16 if flat.dtype.itemsize == 2 else np.uint32)
        bits[at] ^= 1
    return numpy_helper.from_array(array, tensor.name)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", CASES)
def test_one_element_of_any_constant(cases, name, engine):
    """Codes, scales, zero points, biases, smoothing, and what stays in float: one step in one place."""
    one = cases(name, engine)
    for position, tensor in enumerate(constants(one.proto)):
        for index in (0, np.prod(tensor.dims, dtype=int) // 2, -1):
            changed = one.copy()
            constants(changed)[position].CopyFrom(changed_element(tensor, int(index)))
            said = one.found(changed)
            assert said is not None, f"{tensor.name}[{index}]"
            assert repr(tensor.name) in said


@pytest.mark.parametrize("name", CASES)
def test_a_wider_type_with_the_same_numbers(cases, name):
    """A Cast would take it, and the engine compute the same; the file would not hold what was planned."""
    wider = {
        TensorProto.INT8: np.int32,
        TensorProto.UINT8: np.int32,
        TensorProto.INT4: np.int8,
        TensorProto.INT32: np.int64,
        TensorProto.FLOAT: np.float64,
        TensorProto.FLOAT16: np.float32,
        TensorProto.BFLOAT16: np.float32,
    }
    one = cases(name)
    for position, tensor in enumerate(constants(one.proto)):
        if tensor.data_type in wider:
            changed = one.copy()
            array = numpy_helper.to_array(tensor).astype(wider[tensor.data_type])
            constants(changed)[position].CopyFrom(numpy_helper.from_array(array, tensor.name))
            assert one.found(changed) is not None, tensor.name


@pytest.mark.parametrize("name", CASES)
def test_a_constant_that_is_not_there(cases, name):
    one = cases(name)
    for number, graph in enumerate((one.proto.graph, *bodies(one.proto.graph))):
        for position in range(len(graph.initializer)):
            changed = one.copy()
            del [changed.graph, *bodies(changed.graph)][number].initializer[position]
            assert one.found(changed) is not None


@pytest.mark.parametrize("name", ["smoothed w8a8", "attention w8a8"])
def test_square_codes_turned_over(cases, name):
    one = cases(name)
    for position, tensor in enumerate(one.proto.graph.initializer):
        if tensor.name.endswith("_codes") and len(tensor.dims) == 2:
            changed = one.copy()
            array = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
            changed.graph.initializer[position].CopyFrom(numpy_helper.from_array(array, tensor.name))
            assert one.found(changed) is not None, tensor.name


# --- the graph --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["smoothed w8a8", "attention w8a8"])
def test_two_weights_that_have_changed_places(cases, name, engine):
    """Every constant is as planned, and read by the wrong layer."""
    one = cases(name, engine)
    codes = [t.name for t in one.proto.graph.initializer if t.name.endswith("_codes") and len(t.dims) == 2]
    first, second = codes[0], codes[-1]
    changed = one.copy()
    swap = {first: second, second: first}
    for node in changed.graph.node:
        for index, value in enumerate(node.input):
            node.input[index] = swap.get(value, value)
    assert "does not compute what the plan says" in one.found(changed)


def test_two_weights_that_have_changed_names(cases):
    one = cases("smoothed w8a8")
    changed = one.copy()
    tensors = {t.name: t for t in changed.graph.initializer}
    first, second = tensors["w1_codes"], tensors["w2_codes"]
    first.name, second.name = second.name, first.name
    assert "differs from the plan" in one.found(changed)


@pytest.mark.parametrize("name", ["convolutions w8", "convolutions fp16", "linear w4", "linear w8a8_dynamic"])
def test_an_operator_that_is_passed_by(cases, name):
    """(In static int8 a Relu changes nothing: its range starts at zero, where codes do.)"""
    one = cases(name)
    changed = one.copy()
    relu = next(node for node in changed.graph.node if node.op_type == "Relu")
    for node in changed.graph.node:
        for index, value in enumerate(node.input):
            if value == relu.output[0]:
                node.input[index] = relu.input[0]
    assert one.found(changed) is not None


@pytest.mark.parametrize("name", ["attention w8a8", "smoothed w8a8", "convolutions w8a8", "linear w4"])
def test_scales_along_the_wrong_axis(cases, name):
    """Square weights have as many scales along either axis, and the products are not far off."""
    one = cases(name)
    changed = one.copy()
    for node in changed.graph.node:
        if node.op_type == "DequantizeLinear":
            for attribute in node.attribute:
                if attribute.name == "axis":
                    attribute.i = 1 - attribute.i
    assert one.found(changed) is not None


@pytest.mark.parametrize("name", ["smoothed w8", "linear w8 with zero points"])
def test_steps_turned_over(cases, name):
    one = cases(name)
    for position, tensor in enumerate(one.proto.graph.initializer):
        if tensor.name.endswith(("_step", "_offset")):
            changed = one.copy()
            turned = changed.graph.initializer[position]
            turned.dims[:] = list(reversed(tensor.dims))
            assert "has the shape" in one.found(changed)


def test_other_inputs_and_outputs(cases):
    one = cases("linear w4")
    for values in ("input", "output"):
        changed = one.copy()
        extra = helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["N", 8, 32])
        if values == "output":
            changed.graph.node.append(helper.make_node("Identity", [changed.graph.input[0].name], ["extra"]))
        getattr(changed.graph, values).append(extra)
        assert f"{values}s are" in one.found(changed)


def test_a_file_that_is_cut_short(cases):
    one = cases("linear w4")
    settings = EngineSettings("onnxruntime", "f32", 1)
    short = one.path.with_name("short.onnx")
    short.write_bytes(one.path.read_bytes()[:-200])
    one.checker._spelled_out[short] = one.checker._expected(one.candidate)
    cut = Candidate("short", replace(one.candidate.file, path=short), settings)
    assert "short.onnx" in one.checker.difference(cut)
