"""The capability tables, seen in what the engines compiled: every entry that shows without a clock.

Entries about speed are measured by ``python -m bench.capabilities``.
"""

from collections import Counter
from dataclasses import replace

import onnx
import pytest

from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, get
from fewbits.engines.onnxruntime_engine import library as onnxruntime
from fewbits.engines.onnxruntime_engine import literal_session
from fewbits.engines.targets import MOVERS, TARGETS
from fewbits.errors import EngineError
from fewbits.planning.recipe import PRESETS, Recipe, Rule
from fewbits.planning.scheme import Scheme
from tests.stages import sqnr_db
from tests.tiny import ATTENTION, CONV_BN, EMBEDDING, LSTM, MATMUL_ADD, RESIDUAL, Tiny

(ORT,) = TARGETS["onnxruntime"]
INPUTS, EVERYWHERE = TARGETS["openvino"]
VNNI = not {"vnni", "amx_int8"}.isdisjoint(cpu().isa)

int8_products = pytest.mark.skipif(not VNNI, reason="this CPU has no instructions for int8 products")
x86 = pytest.mark.skipif("avx2" not in cpu().isa, reason="ONNX Runtime takes other forms on other CPUs")
bf16 = pytest.mark.skipif(
    "bf16" not in get("openvino").precisions(cpu()), reason="OpenVINO has no bf16 on this CPU"
)

SIGNED = replace(
    PRESETS["w8a8"],
    rules=tuple(
        replace(rule, activations=replace(rule.activations, qtype="int8"))
        for rule in PRESETS["w8a8"].rules
        if rule.activations is not None
    ),
)
"""The preset w8a8 with activations in int8."""

LONG_SUMS = Tiny(
    "g (float[N, 8, 128] x) => (float[N, 8, 64] y) { y = MatMul (x, w) }",
    {"w": (128, 64)},
    {"x": ((8, 128), None)},
)
ODD_SUMS = Tiny(
    "g (float[N, 257] x) => (float[N, 64] y) { y = MatMul (x, w) }", {"w": (257, 64)}, {"x": ((257,), None)}
)


def moved(mover, last="y = Conv (m, w2, b2)", out="8, 8, 8", **weights):
    """A convolution, what only moves its values, and a layer that reads them."""
    return Tiny(
        f"""g (float[N, 8, 8, 8] x) => (float[N, {out}] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu (a)
            {mover}
            {last}
        }}""",
        {"w1": (8, 8, 3, 3), "b1": (8,)} | (weights or {"w2": (8, 8, 1, 1), "b2": (8,)}),
        {"x": ((8, 8, 8), None)},
    )


def gemm(transposed=False):
    """A linear layer as frameworks write it for samples of one axis."""
    return Tiny(
        f"g (float[N, 128] x) => (float[N, 64] y) {{ y = Gemm <transB = {int(transposed)}> (x, w, b) }}",
        {"w": (64, 128) if transposed else (128, 64), "b": (64,)},
        {"x": ((128,), None)},
    )


def perceptron(product, activation):
    """Linear layers with an activation between, for samples of one axis."""
    lines = [
        f"{product.format(x=x, w=f'w{i}', b=f'b{i}', y=f's{i}')} {y} = {activation} (s{i})"
        for i, (x, y) in enumerate((("x", "h0"), ("h0", "h1"), ("h1", "y")))
    ]
    shapes = {f"w{i}": (64, 64) for i in range(3)} | {f"b{i}": (64,) for i in range(3)}
    return Tiny(
        f"g (float[N, 64] x) => (float[N, 64] y) {{ {' '.join(lines)} }}", shapes, {"x": ((64,), None)}
    )


GEMM, SUM = "{y} = Gemm ({x}, {w}, {b})", "{y}_m = MatMul ({x}, {w}) {y} = Add ({y}_m, {b})"

MOVED = {
    "MaxPool": moved("m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)", out="8, 4, 4"),
    "Pad": moved("p = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> () m = Pad (r, p)", out="8, 10, 10"),
    "Transpose": moved("m = Transpose <perm = [0, 3, 2, 1]> (r)"),
    "Reshape": moved("s = Constant <value_ints = [0, 8, 4, 16]> () m = Reshape (r, s)", out="8, 4, 16"),
    "Slice": moved(
        """s = Constant <value_ints = [0]> () e = Constant <value_ints = [4]> ()
        axis = Constant <value_ints = [2]> () m = Slice (r, s, e, axis)""",
        out="8, 4, 8",
    ),
    "Unsqueeze": moved(
        "s = Constant <value_ints = [1]> () u = Unsqueeze (r, s) m = Squeeze (u, s)",
    ),
    "Flatten": moved("f = Flatten (r)", "y = MatMul (f, w2)", out="10", w2=(512, 10)),
}


class Optimized:
    """The graph that ONNX Runtime runs."""

    def __init__(self, path, activation_group_size=0):
        optimized = path.with_name("optimized.onnx")
        ort = onnxruntime()

        class Saving(ort.SessionOptions):
            def __init__(self):
                super().__init__()
                self.optimized_model_filepath = str(optimized)

        settings = EngineSettings("onnxruntime", "f32", 1, activation_group_size)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ort, "SessionOptions", Saving)
            get("onnxruntime").compile(path, settings)
        self.graph = onnx.load(optimized).graph
        self.count = Counter(node.op_type for node in self.graph.node)
        self._codes = set()
        for node in self.graph.node:
            first = node.input[0] in self._codes
            makes_float = node.op_type in ("DequantizeLinear", "MatMulIntegerToFloat", "QGemm")
            if node.op_type.startswith(("QuantizeLinear", "QLinear")) or (first and not makes_float):
                self._codes.update(node.output)

    def nodes(self, op):
        return [node for node in self.graph.node if node.op_type == op]

    def on_codes(self, op):
        """For each node of that operator, whether its first input is codes."""
        return [node.input[0] in self._codes for node in self.nodes(op)]

    @property
    def weights(self):
        """How many initializers of two and more axes there are of each dtype."""
        kinds = [tensor.data_type for tensor in self.graph.initializer if len(tensor.dims) > 1]
        return Counter(onnx.TensorProto.DataType.Name(kind) for kind in kinds)


class Compiled:
    """The graph that OpenVINO runs, for samples one at a time."""

    def __init__(self, path, tiny, precision="f32", activation_group_size=0):
        settings = EngineSettings("openvino", precision, 1, activation_group_size)
        shapes = {name: array.shape for name, array in tiny.samples(1).items()}
        session = get("openvino").compile(path, settings, shapes)
        ops = session._request.get_compiled_model().get_runtime_model().get_ordered_ops()
        known = [{key: value.astype(str) for key, value in op.get_rt_info().items()} for op in ops]
        self.layers = [layer for layer in known if layer["layerType"] not in ("Const", "Input", "Output")]

    def of(self, kind):
        return [layer for layer in self.layers if layer["layerType"] == kind]

    def primitives(self, kind):
        """What the layers of that kind multiply in: "i8", "f32", "bf16"."""
        return [layer["primitiveType"].rsplit("_", 1)[-1].lower() for layer in self.of(kind)]

    def inputs(self, kind):
        """Types of the tensors that the layers of that kind read."""
        return [layer["runtimePrecision"] for layer in self.of(kind)]

    def outputs(self, kind):
        return [layer["outputPrecisions"] for layer in self.of(kind)]

    def running(self, name):
        """The layer that an operator of the file became a part of."""
        (layer,) = [layer for layer in self.layers if name in layer.get("originalLayersNames", "").split(",")]
        return layer


def outputs(path, tiny, engine, precision="f32", group=0):
    session = get(engine).compile(path, EngineSettings(engine, precision, 1, group))
    return session.run(tiny.samples(16))


def kept_db(path, tiny, *settings):
    """What an engine keeps of the file's own arithmetic."""
    return sqnr_db(literal_session(path, 1).run(tiny.samples(16)), outputs(path, tiny, *settings))


# ONNX Runtime


@pytest.mark.parametrize("recipe", ["w8", "fp16", "bf16"])
@pytest.mark.parametrize("tiny", [RESIDUAL, MATMUL_ADD], ids=["convolutions", "linear"])
def test_onnxruntime_folds_cast_and_mul(write, tiny, recipe):
    graph = Optimized(write(tiny, recipe, ORT))
    assert set(graph.weights) == {"FLOAT"}
    assert not {"Cast", "Mul", "DequantizeLinear"} & set(graph.count)


@pytest.mark.parametrize("tiny", [RESIDUAL, MATMUL_ADD], ids=["convolutions", "linear"])
def test_codebooks_are_looked_up_at_load(write, tiny):
    recipe = Recipe("codebooks", (Rule("*", Scheme("codebook4")),))
    path = write(tiny, recipe, ORT)
    graph = Optimized(path)
    assert set(graph.weights) == {"FLOAT"}
    assert not {"Cast", "Gather"} & set(graph.count)
    compiled = Compiled(write(tiny, recipe, INPUTS), tiny)
    assert not compiled.of("Gather")
    assert not compiled.of("Convert")
    for engine in ("onnxruntime", "openvino"):
        assert kept_db(path, tiny, engine) > 90


@pytest.mark.parametrize("tiny", [RESIDUAL, MATMUL_ADD], ids=["convolutions", "linear"])
def test_onnxruntime_keeps_what_dequantize_linear_reads(write, tiny):
    graph = Optimized(write(tiny, "w8", replace(ORT, weight_forms=(("int8", "dequantize"),))))
    assert "FLOAT" not in graph.weights
    # Weights of convolutions are brought back in every run, those of products inside the product.
    assert (graph.count["DequantizeLinear"], graph.count["MatMulNBits"]) == (
        (3, 0) if tiny is RESIDUAL else (0, 2)
    )


def test_onnxruntime_gathers_codes(write):
    graph = Optimized(write(EMBEDDING, "w8", ORT))
    kinds = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    assert onnx.TensorProto.INT8 in {kinds[node.input[0]] for node in graph.nodes("Gather")}


@pytest.mark.parametrize(("group", "accuracy"), [(0, 1), (32, 4)])
def test_onnxruntime_multiplies_by_blocks_of_int4(write, group, accuracy):
    graph = Optimized(write(LONG_SUMS, "w4_g32", ORT, opset=21), group)
    assert graph.count == {"MatMulNBits": 1}
    found = {a.name: a.i for a in graph.nodes("MatMulNBits")[0].attribute}
    assert (found["bits"], found["block_size"], found["accuracy_level"]) == (4, 32, accuracy)


@pytest.mark.parametrize("transposed", [False, True])
def test_onnxruntime_multiplies_by_blocks_of_int4_in_gemm(write, transposed):
    graph = Optimized(write(gemm(transposed), "w4_g32", ORT, opset=21))
    assert graph.count["MatMulNBits"] == 1


def test_onnxruntime_runs_a_residual_block_on_codes(write):
    graph = Optimized(write(RESIDUAL, "w8a8", ORT))
    assert graph.count["QLinearConv"] == 2
    assert graph.count["QLinearAdd"] == 1
    assert graph.count["Add"] == 0


def test_onnxruntime_needs_both_inputs_of_a_sum_quantized(write):
    graph = Optimized(write(RESIDUAL, "w8a8", replace(ORT, quantize_residuals=False)))
    assert graph.count["QLinearAdd"] == 0
    assert graph.count["Add"] == 1


def test_onnxruntime_needs_results_of_convolutions_quantized(write):
    graphs = [
        Optimized(write(CONV_BN, "w8a8", replace(ORT, quantize_outputs=quantized)))
        for quantized in (True, False)
    ]
    assert [graph.count["QLinearConv"] for graph in graphs] == [2, 1]
    assert [graph.count["FusedConv"] for graph in graphs] == [0, 1]  # in float, its weights brought back
    assert [graph.count["QLinearGlobalAveragePool"] for graph in graphs] == [1, 0]


@pytest.mark.xfail(reason="a convolution that gives the model's output has no quantized result", strict=True)
def test_onnxruntime_runs_the_last_convolution_on_codes(write):
    assert Optimized(write(RESIDUAL, "w8a8", ORT)).count["QLinearConv"] == 3


@pytest.mark.parametrize("mover", [name for name in MOVED if name != "Pad"])
def test_onnxruntime_moves_codes(write, mover):
    assert mover in ORT.moves_through
    graph = Optimized(write(MOVED[mover], "w8a8", ORT))
    (name,) = [op for op in graph.count if op.removeprefix("Nhwc") == mover]
    assert all(graph.on_codes(name))


def test_onnxruntime_pools_floats_unless_quantized_before(write):
    graph = Optimized(write(MOVED["MaxPool"], "w8a8", replace(ORT, moves_through=frozenset())))
    assert graph.on_codes("MaxPool") == [False]


def test_onnxruntime_flattens_floats_unless_quantized_again(write):
    graph = Optimized(write(MOVED["Flatten"], "w8a8", replace(ORT, repeat_after_layout=False)))
    assert graph.on_codes("Flatten") == [False]
    assert graph.count["MatMulIntegerToFloat"] == 0


@pytest.mark.parametrize("tiny", [MATMUL_ADD, ATTENTION, gemm()], ids=["linear", "attention", "gemm"])
def test_onnxruntime_fuses_dynamic_int8(write, tiny):
    graph = Optimized(write(tiny, "w8a8_dynamic", ORT))
    linear = len(tiny.weights) - sum(len(shape) == 1 for shape in tiny.weights.values())
    fused = graph.count["DynamicQuantizeMatMul"] + graph.count["MatMulIntegerToFloat"]
    assert fused == linear
    assert not {"MatMulInteger", "Cast"} & set(graph.count)


def test_onnxruntime_multiplies_codes_in_linear_layers_and_floats_in_attention(write):
    graph = Optimized(write(ATTENTION, "w8a8", ORT))
    assert graph.on_codes("MatMulIntegerToFloat") == [True] * 4
    assert graph.on_codes("FusedMatMul") + graph.on_codes("MatMul") == [False] * 2
    assert graph.count["DequantizeLinear"] == 0


@pytest.mark.parametrize("transposed", [False, True])
def test_onnxruntime_multiplies_codes_in_gemm(write, transposed):
    graph = Optimized(write(gemm(transposed), "w8a8", ORT))
    assert graph.count["QGemm"] == 1


@pytest.mark.parametrize("activation", ["Relu", "Tanh"])
@pytest.mark.parametrize("product", [GEMM, SUM], ids=["gemm", "matmul and add"])
def test_onnxruntime_multiplies_codes_in_every_layer_of_a_perceptron(write, product, activation):
    smoothed = replace(PRESETS["w8a8"], smooth=True), replace(PRESETS["w8a8"], smooth=False)
    for recipe in smoothed:
        graph = Optimized(write(perceptron(product, activation), recipe, ORT))
        assert graph.count["QGemm"] == 3
        assert not {"FusedGemm", "Gemm", "MatMul", "DequantizeLinear"} & set(graph.count)


@x86
def test_onnxruntime_needs_unsigned_activations(write):
    residual, attention = (Optimized(write(tiny, SIGNED, ORT)) for tiny in (RESIDUAL, ATTENTION))
    assert (residual.count["QLinearConv"], residual.count["QLinearAdd"]) == (1, 0)
    assert attention.count["MatMulIntegerToFloat"] == 1
    assert attention.count["MatMul"] == 4


@pytest.mark.parametrize("recipe", ["w8", "fp16"])
def test_onnxruntime_leaves_activations_of_folded_weights_alone(write, recipe):
    path = write(LONG_SUMS, recipe, ORT)
    assert kept_db(path, LONG_SUMS, "onnxruntime", "f32", 32) > 100


# OpenVINO


@int8_products
@pytest.mark.parametrize("recipe", ["w8a8", SIGNED], ids=["uint8", "int8"])
@pytest.mark.parametrize("target", [INPUTS, EVERYWHERE], ids=lambda target: target.placement)
def test_openvino_runs_convolutions_on_codes(write, target, recipe):
    compiled = Compiled(write(RESIDUAL, recipe, target), RESIDUAL)
    assert compiled.primitives("Convolution") == ["i8"] * 3
    # The convolution in front of another gives codes although its result is not quantized in the file.
    assert compiled.outputs("Convolution")[0] == "u8"


@int8_products
@pytest.mark.parametrize("recipe", ["w8a8", SIGNED], ids=["uint8", "int8"])
def test_openvino_multiplies_codes_in_linear_layers_and_floats_in_attention(write, recipe):
    compiled = Compiled(write(ATTENTION, recipe, INPUTS), ATTENTION)
    assert compiled.primitives("FullyConnected") == ["i8"] * 4
    assert not compiled.of("MatMul")  # the products of attention are fused with the softmax between them
    assert compiled.running("Softmax_6") == compiled.running("MatMul_5")
    assert compiled.running("MatMul_5")["runtimePrecision"] == "f32"


@pytest.mark.parametrize("tiny", [RESIDUAL, ATTENTION, CONV_BN], ids=["residual", "attention", "conv_bn"])
@pytest.mark.parametrize("target", [INPUTS, EVERYWHERE], ids=lambda target: target.placement)
def test_openvino_takes_signed_activations_for_the_same(write, target, tiny):
    unsigned, signed = (outputs(write(tiny, recipe, target), tiny, "openvino") for recipe in ("w8a8", SIGNED))
    assert sqnr_db(unsigned, signed) > 100


@int8_products
def test_openvino_adds_floats_unless_residuals_are_quantized(write):
    inputs, everywhere = (
        Compiled(write(RESIDUAL, "w8a8", target), RESIDUAL) for target in (INPUTS, EVERYWHERE)
    )
    assert inputs.running("Add_3")["runtimePrecision"] == "f32"
    total = everywhere.running("Add_3")
    assert (total["layerType"], total["runtimePrecision"]) == ("Convolution", "u8")
    exact = literal_session(write(RESIDUAL, "w8a8", INPUTS).with_name("float.onnx"), 1).run(
        RESIDUAL.samples(16)
    )
    kept = [
        sqnr_db(exact, outputs(write(RESIDUAL, "w8a8", target), RESIDUAL, "openvino"))
        for target in (INPUTS, EVERYWHERE)
    ]
    assert kept[0] > kept[1] + 1


@int8_products
def test_openvino_pools_codes_and_fuses_padding_where_quantized_before(write):
    before, behind = (
        {name: Compiled(write(MOVED[name], "w8a8", target), MOVED[name]) for name in INPUTS.moves_through}
        for target in (INPUTS, replace(INPUTS, moves_through=frozenset()))
    )
    assert before["MaxPool"].inputs("Pooling") == ["u8"]
    assert behind["MaxPool"].inputs("Pooling") == ["f32"]
    assert before["Pad"].inputs("Pad") == []
    assert behind["Pad"].inputs("Pad") == ["f32"]


@int8_products
@pytest.mark.parametrize(
    ("mover", "alone", "told"), [("Transpose", "u8", "u8"), ("Slice", "f32", "u8"), ("Flatten", "f32", "u8")]
)
def test_openvino_moves_codes_through_some_layout_operators_by_itself(write, mover, alone, told):
    layer = {"Slice": "StridedSlice", "Flatten": "Reorder"}.get(mover, mover)
    for target, kind in ((INPUTS, alone), (replace(INPUTS, moves_through=frozenset(MOVERS)), told)):
        compiled = Compiled(write(MOVED[mover], "w8a8", target), MOVED[mover])
        assert compiled.inputs(layer)[-1] == kind


@pytest.mark.parametrize(("recipe", "opset", "kind"), [("w8", 17, "i8"), ("w4_g32", 21, "i4")])
def test_openvino_keeps_weights_of_linear_layers_compressed(write, recipe, opset, kind):
    compiled = Compiled(write(LONG_SUMS, recipe, INPUTS, opset), LONG_SUMS)
    assert compiled.inputs("FullyConnected") == [kind]
    assert compiled.primitives("FullyConnected") == ["f32"]


def test_openvino_brings_weights_of_convolutions_back_when_it_loads(write):
    compiled = Compiled(write(RESIDUAL, "w8", INPUTS), RESIDUAL)
    assert compiled.inputs("Convolution") == ["f32"] * 3


@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_openvino_brings_narrow_floats_back_when_it_loads(write, recipe):
    compiled = Compiled(write(LONG_SUMS, recipe, INPUTS), LONG_SUMS)
    assert compiled.inputs("FullyConnected") == ["f32"]
    assert not compiled.of("Convert")


@pytest.mark.parametrize(("recipe", "opset"), [("w8", 17), ("w4_g32", 21)])
def test_openvino_rounds_activations_when_told_to(write, recipe, opset):
    assert INPUTS.rounds_activations
    path = write(LONG_SUMS, recipe, INPUTS, opset)
    assert kept_db(path, LONG_SUMS, "openvino") > 100
    assert 35 < kept_db(path, LONG_SUMS, "openvino", "f32", 32) < 60


BESIDE_CODES = Tiny(
    """g (float[N, 6, 16] x) => (float[1, N, 8] y) {
        t = Transpose <perm = [1, 0, 2]> (x)
        all, last = LSTM <hidden_size = 32> (t, wx, wh, b)
        y = MatMul (last, w)
    }""",
    {"wx": (1, 128, 16), "wh": (1, 128, 32), "b": (1, 256), "w": (32, 8)},
    {"x": ((6, 16), None)},
)
"""A recurrent layer in one file with a layer that reads codes."""


@pytest.mark.parametrize("tiny", [LSTM, BESIDE_CODES], ids=["LSTM", "LSTM and codes"])
def test_onnxruntime_has_an_lstm_on_codes(write, tiny):
    assert ORT.dynamic_lstm
    graph = Optimized(write(tiny, "w8a8_dynamic", ORT))
    assert graph.count["DynamicQuantizeLSTM"] == 1
    assert graph.count["LSTM"] == 0


def test_openvino_needs_constants_in_recurrent_layers_beside_codes(write):
    assert INPUTS.constant_recurrent
    feeds = BESIDE_CODES.samples(4)
    settings = EngineSettings("openvino", "f32", 1)
    assert get("openvino").compile(write(BESIDE_CODES, "w8a8", INPUTS), settings).run(feeds)
    refused = write(BESIDE_CODES, "w8a8", replace(INPUTS, constant_recurrent=False))
    with pytest.raises(EngineError, match="expects Constant"):
        get("openvino").compile(refused, settings)


def test_openvino_multiplies_floats_in_dynamic_int8(write):
    assert not INPUTS.dynamic_int8
    path = write(LONG_SUMS, "w8a8_dynamic", replace(INPUTS, dynamic_int8=True))
    assert Compiled(path, LONG_SUMS).primitives("FullyConnected") == ["f32"]


@bf16
def test_openvino_gets_odd_sums_wrong(write):
    assert INPUTS.wrong_odd_sums
    right = write(ODD_SUMS, "w8", INPUTS)
    wrong = write(ODD_SUMS, "w8", replace(INPUTS, wrong_odd_sums=False))
    assert Compiled(wrong, ODD_SUMS).inputs("FullyConnected") == ["i8"]
    assert Compiled(right, ODD_SUMS).inputs("FullyConnected") == ["f32"]
    assert kept_db(wrong, ODD_SUMS, "openvino", "bf16") < 30
    assert kept_db(right, ODD_SUMS, "openvino", "bf16") > 45
