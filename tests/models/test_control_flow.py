"""Weights in branches, in the bodies of loops and in functions: seen, written in fewer bits, and right.

Every preset on every such model is in ``test_every_model``, and changing any constant of theirs in ``test_verify``.
"""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import fewbits as fb
from fewbits.errors import InputError
from fewbits.models.model import open_model
from tests.stages import sqnr_db, write_files
from tests.tiny import (
    CONTROL_FLOW,
    FUNCTIONS,
    IF,
    IF_LSTM,
    LOOP,
    LSTM,
    LSTM_WITH_LENGTHS,
    NESTED,
    ORDERED_GATES,
    RANK_UNKNOWN,
    SCAN,
    Tiny,
    bodies,
)

LAYERS = {
    "if": [("MatMul", "If"), ("MatMul", "If"), ("Gemm", "If"), ("MatMul", "If")],
    "loop": [("MatMul", "Loop"), ("MatMul", "Loop")],
    "scan": [("MatMul", None), ("MatMul", "Scan"), ("MatMul", "Scan")],
    "if_lstm": [("LSTM", "If"), ("LSTM", "If")],
    "nested": [("MatMul", "If"), ("MatMul", "If")],
    "functions": [("Gemm", None)] * 3 + [("MatMul", None)],
    "function_in_a_branch": [("MatMul", "If"), ("MatMul", "If")],
}
READ_BY_BRANCHES = Tiny(
    """g (float[N, 8, 8, 8] x) => (float[N, 8, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        r = Relu (a)
        total = ReduceSum <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        high = Greater (total, zero)
        c = If (high) <
            then_branch = up () => (float[N, 8, 8, 8] n) { n = Sigmoid (r) },
            else_branch = down () => (float[N, 8, 8, 8] m) { m = Tanh (r) }
        >
        d = Conv <pads = [1, 1, 1, 1]> (c, w2, b2)
        y = Add (d, r)
    }""",
    {"w1": (8, 8, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,)},
    {"x": ((8, 8, 8), None)},
)
BOTH_WAYS = Tiny(
    """g (float[N, 6, 16] x) => (float[6, 2, N, 24] y) {
        t = Transpose <perm = [1, 0, 2]> (x)
        y = LSTM <hidden_size = 24, direction = "bidirectional"> (t, wx, wh, b)
    }""",
    {"wx": (2, 96, 16), "wh": (2, 96, 24), "b": (2, 192)},
    {"x": ((6, 16), None)},
)
NORMED_BRANCH = Tiny(
    """g (float[N, 8, 8, 8] x) => (float[N, 8, 8, 8] y) {
        total = ReduceSum <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        high = Greater (total, zero)
        y = If (high) <
            then_branch = up () => (float[N, 8, 8, 8] n) {
                a = Conv <pads = [1, 1, 1, 1]> (x, w)
                n = BatchNormalization (a, gain, shift, mean, variance)
            },
            else_branch = down () => (float[N, 8, 8, 8] m) { m = Neg (x) }
        >
    }""",
    {"w": (8, 8, 3, 3), "shift": (8,), "mean": (8,)},
    {"x": ((8, 8, 8), None)},
    {"gain": np.linspace(0.5, 2, 8, dtype=np.float32), "variance": np.linspace(0.5, 3, 8, dtype=np.float32)},
)


def operators(path):
    """How each operator is called, in bodies too."""
    proto = onnx.load(path)
    return [node.op_type for graph in (proto.graph, *bodies(proto.graph)) for node in graph.node]


# --- seeing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTROL_FLOW)
def test_every_layer_is_seen_and_has_a_name_of_its_own(tmp_path, name):
    layers = open_model(CONTROL_FLOW[name].save(tmp_path / "m.onnx")).info.layers
    assert [(layer.op, layer.inside) for layer in layers] == LAYERS[name]
    assert all(layer.weights for layer in layers)
    assert len({layer.name for layer in layers}) == len({layer.node for layer in layers}) == len(layers)


@pytest.mark.parametrize("name", CONTROL_FLOW)
def test_inspect_counts_them(tmp_path, name):
    tiny = CONTROL_FLOW[name]
    found = fb.inspect(tiny.save(tmp_path / "m.onnx"))
    shapes = [*tiny.weights.values(), *(shape for body in tiny.inside.values() for shape in body.values())]
    wanted = 4 * sum(int(np.prod(shape)) for shape in shapes)
    assert wanted <= found.bytes_by_dtype["float"] <= wanted + 8
    assert [layer.op for layer in found.layers] == [op for op, _ in LAYERS[name]]
    (w8,) = (one for one in found.could_give if one.recipe == "w8")
    assert w8.why_not is None and w8.size_ratio < 0.75


def test_a_constant_inside_a_function_is_a_weight(tmp_path):
    """The function makes it; nothing outside knows of it."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 32] x) => (float[N, 16] y) { y = local.dense (x) }
        <domain: "local", opset_import: ["" : 17]>
        dense (x) => (y) { w = Constant <value_float = 0.0> ()  y = MatMul (x, w) }""")
    weight = numpy_helper.from_array((rng.standard_normal((32, 16)) / 6).astype(np.float32))
    constant = model.functions[0].node[0]
    del constant.attribute[:]
    constant.attribute.append(onnx.helper.make_attribute("value", weight))
    onnx.save(model, tmp_path / "m.onnx")
    found = fb.inspect(tmp_path / "m.onnx")
    assert found.params == 512
    assert found.bytes_by_dtype == {"float": 2048}
    assert [layer.shape for layer in found.layers] == [(32, 16)]
    feeds = {"x": rng.standard_normal((16, 32)).astype(np.float32)}
    files = write_files(tmp_path / "m.onnx", feeds, "w8", tmp_path)
    for one in files.candidates:
        assert sqnr_db(files.float_outputs(feeds), files.session(one).run(feeds)) > 36


@pytest.mark.parametrize(("tiny", "body"), [(IF, "up"), (LOOP, "again"), (NESTED, "one")])
def test_nan_inside_a_body_is_refused(tmp_path, tiny, body):
    proto = tiny.proto()
    (graph,) = (one for one in bodies(proto.graph) if one.name == body)
    (tensor,) = (one for one in graph.initializer if one.name == "w")
    array = numpy_helper.to_array(tensor).copy()
    array[1, 5] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"weight 'w' has nan at index \[1, 5\]"):
        open_model(tmp_path / "m.onnx")


# --- writing ----------------------------------------------------------------------------------------------------


def is_weight(shape):
    return sum(size > 1 for size in shape) > 1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", CONTROL_FLOW)
def test_no_float_weight_is_left(tmp_path, name, engine):
    tiny = CONTROL_FLOW[name]
    files = write_files(tiny.save(tmp_path / "m.onnx"), tiny.samples(16), "w8", tmp_path, engine)
    (written,) = files.written
    proto = onnx.load(written.path)
    for graph in (proto.graph, *bodies(proto.graph)):
        floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        assert not [tensor.name for tensor in floats if is_weight(tensor.dims)]
    shapes = [*tiny.weights.values(), *(shape for body in tiny.inside.values() for shape in body.values())]
    once = sum(int(np.prod(shape)) for shape in shapes if is_weight(shape))
    assert written.bytes_by_dtype["int8"] == once, "however many branches read it"


def test_gates_in_another_order_are_put_in_place_once(tmp_path):
    """Both branches cut the same weights into the same slices; no slice is left, and no second copy."""
    model = open_model(IF_LSTM.save(tmp_path / "m.onnx"))
    assert not {"Slice", "Concat"} & set(model.operators())
    assert len({weight.name for layer in model.info.layers for weight in layer.weights}) == 2


@pytest.mark.parametrize("read_elsewhere", [False, True])
def test_gates_that_something_else_reads_are_left_to_the_engine(tmp_path, read_elsewhere):
    """Else the file would hold them twice."""
    gates = (ORDERED_GATES.format(name=name, source=f"weight_{name}") for name in "wr")
    outputs, more = (
        ("", "") if not read_elsewhere else (", float sum", "sum = ReduceSum <keepdims = 0> (weight_w)")
    )
    tiny = Tiny(
        f"""g (float[6, N, 128] x) => (float[6, 1, N, 128] y{outputs}) {{
            {more}
            zero = Constant <value_ints = [0]> ()
            one = Constant <value_ints = [128]> ()
            three = Constant <value_ints = [384]> ()
            four = Constant <value_ints = [512]> ()
            {"".join(gates)}
            y = LSTM <hidden_size = 128> (x, w, r, bias)
        }}""",
        {"weight_w": (512, 128), "weight_r": (512, 128), "bias": (1, 1024)},
        {},
    )
    model = open_model(tiny.save(tmp_path / "m.onnx"))
    (layer,) = model.info.layers or (None,)
    stored = sum(value.const_value.nbytes for value in model.folded.graph.initializers.values())
    assert stored < 4 * (2 * 512 * 128 + 1024) + 100
    assert len(layer.weights if layer else ()) == (1 if read_elsewhere else 2)


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("tiny", [IF, LOOP, NESTED], ids=["if", "loop", "nested"])
def test_int4_in_bodies_of_any_opset(tmp_path, tiny, opset):
    """Its blocks need opset 21; bodies are raised with the rest, and hold their blocks themselves."""
    feeds = tiny.samples(16)
    files = write_files(tiny.save(tmp_path / "m.onnx", opset), feeds, "w4_g32", tmp_path)
    expected = files.float_outputs(feeds)
    for one in files.candidates:
        assert sqnr_db(expected, files.session(one).run(feeds)) > 13
        proto = onnx.load(one.file.path)
        assert all(opset.version >= 21 for opset in proto.opset_import if not opset.domain)
        blocks = [t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT4]
        inside = [
            t.name for b in bodies(proto.graph) for t in b.initializer if t.data_type == onnx.TensorProto.INT4
        ]
        assert inside and not blocks


@pytest.mark.parametrize("preset", ["w8", "w8a8"])
def test_a_branch_reads_what_is_quantized_outside(tmp_path, preset):
    feeds = READ_BY_BRANCHES.samples(32)
    files = write_files(READ_BY_BRANCHES.save(tmp_path / "m.onnx"), feeds, preset, tmp_path)
    for batch in (feeds, {"x": np.abs(feeds["x"])}, {"x": -np.abs(feeds["x"])}):
        expected, checker = files.float_outputs(batch), files.checker(batch)
        for one in files.candidates:
            assert sqnr_db(expected, files.session(one).run(batch)) > 24, one.name
            assert checker.difference(one) is None, one.name


def test_batch_norm_in_a_branch_goes_into_its_convolution(tmp_path):
    feeds = NORMED_BRANCH.samples(16)
    files = write_files(NORMED_BRANCH.save(tmp_path / "m.onnx"), feeds, "w8", tmp_path)
    assert "BatchNormalization" not in files.run.model.operators()
    for sign in (1, -1):
        batch = {"x": sign * np.abs(feeds["x"])}
        for one in files.candidates:
            assert sqnr_db(files.float_outputs(batch), files.session(one).run(batch)) > 30


def test_branches_side_by_side_may_use_the_same_names(tmp_path):
    """Both branches of it have an ``h``, an ``r`` and a weight ``w``."""
    files = write_files(IF.save(tmp_path / "m.onnx"), IF.samples(16), "w8", tmp_path)
    for sign in (1, -1):
        feeds = {"x": sign * np.abs(IF.samples(16)["x"])}
        for one in files.candidates:
            assert sqnr_db(files.float_outputs(feeds), files.session(one).run(feeds)) > 36


# --- an LSTM on codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tiny", [LSTM, LSTM_WITH_LENGTHS, BOTH_WAYS, IF_LSTM],
    ids=["one way", "with lengths and states", "both ways", "in branches"],
)  # fmt: skip
def test_an_lstm_reads_codes_in_onnxruntime(tmp_path, tiny):
    feeds = tiny.samples(16)
    files = write_files(tiny.save(tmp_path / "m.onnx"), feeds, "w8a8_dynamic", tmp_path, "onnxruntime")
    (one,) = files.candidates
    assert "DynamicQuantizeLSTM" in operators(one.file.path)
    assert "LSTM" not in operators(one.file.path)
    kept = sqnr_db(files.float_outputs(feeds), files.session(one).run(feeds))
    assert 34 < kept < 60
    assert files.checker(feeds).difference(one) is None
    assert {layer.scheme for layer in one.file.plan.layers} == {"int8 per channel, inputs uint8 dynamic"}


def test_one_scale_for_all_of_an_lstm(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "mine"\n[[rules]]\nmatch = "LSTM"\nweights = {qtype = "int8", per = "tensor"}\n'
        'activations = {qtype = "uint8", symmetric = false, dynamic = true}\n'
    )
    feeds = BOTH_WAYS.samples(16)
    files = write_files(BOTH_WAYS.save(tmp_path / "m.onnx"), feeds, str(recipe), tmp_path, "onnxruntime")
    (one,) = files.candidates
    assert sqnr_db(files.float_outputs(feeds), files.session(one).run(feeds)) > 30
    assert files.checker(feeds).difference(one) is None


def test_openvino_gets_its_weights_only_and_the_plan_says_so(tmp_path):
    files = write_files(
        LSTM.save(tmp_path / "m.onnx"), LSTM.samples(16), "w8a8_dynamic", tmp_path, "openvino"
    )
    (written,) = files.written
    (layer,) = written.plan.layers
    assert layer.scheme == "int8 per channel"
    assert layer.note == "weights only: openvino gains nothing by codes of what LSTM reads"


# --- engines that cannot read a model ---------------------------------------------------------------------------

FOLDED = Tiny(
    """g (float[N, 64] x) => (float[N, 64] y) {
        one = Det (small)
        a = MatMul (x, w)
        y = Mul (a, one)
    }""",
    {"w": (64, 64)},
    {"x": ((64,), None)},
    {"small": np.diag(np.array([0.5, 2], np.float32))},
)
"""OpenVINO has no determinant; that of a constant is computed before it is written."""


def compressed(tiny, folder):
    return fb.compress(
        tiny.save(folder / "m.onnx"), tiny.samples(32), recipe="w8", threads=1, max_drop=50, prefer="size",
        out=folder / "out",
    ).report  # fmt: skip


def test_an_engine_that_cannot_read_a_model_says_so_and_the_other_goes_on(tmp_path, short_measuring):
    report = compressed(RANK_UNKNOWN, tmp_path)
    assert report.saved == "w8 ort f32"
    for one in report.candidates:
        assert (one.error is None) == (one.engine == "onnxruntime")
        assert one.error is None or "openvino cannot read" in one.error
    (note,) = (note for note in report.notes if "openvino" in note)
    assert note.startswith("openvino is out: openvino cannot read")
    assert "rank" in note


def test_an_engine_may_read_what_is_written_where_it_cannot_read_the_original(tmp_path, short_measuring):
    report = compressed(FOLDED, tmp_path)
    assert {one.engine for one in report.candidates if one.error is None and not one.original} == {
        "onnxruntime", "openvino",
    }  # fmt: skip
    for one in report.candidates:
        assert (one.error is None) == (one.engine == "onnxruntime" or not one.original)
    (note,) = (note for note in report.notes if "openvino" in note)
    assert note.startswith(
        "openvino cannot run the original, but what was written of it: openvino cannot read"
    )


# --- the report -------------------------------------------------------------------------------------------------


def test_the_report_has_every_layer_and_why_some_read_floats(tmp_path, short_measuring):
    result = fb.compress(
        SCAN.save(tmp_path / "m.onnx"), SCAN.samples(64), recipe="w8a8", engine="onnxruntime", threads=1,
        max_drop=50, prefer="size", out=tmp_path / "out",
    )  # fmt: skip
    layers = result.report.layers
    assert [layer.scheme for layer in layers] == [
        "int8 per channel, inputs uint8 per tensor", "int8 per channel", "int8 per channel",
    ]  # fmt: skip
    assert [layer.why for layer in layers] == [
        None, *["weights only: what it reads is not observed inside Scan"] * 2,
    ]  # fmt: skip
    assert all(layer.bits == 8 for layer in layers)


def test_functions_are_compressed_from_end_to_end(tmp_path, short_measuring):
    result = fb.compress(
        FUNCTIONS.save(tmp_path / "m.onnx"), FUNCTIONS.samples(64), recipe="w8", engine="onnxruntime", threads=1,
        max_drop=50, prefer="size", out=tmp_path / "out",
    )  # fmt: skip
    assert result.report.saved == "w8 ort f32"
    assert len(result.report.layers) == 4
    assert result.model(FUNCTIONS.samples(3)["x"]).shape == (3, 16)
