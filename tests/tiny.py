"""Tiny models: graphs as ONNX text, weights drawn at random, and feeds that fit them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

IR_OF_OPSET = {7: 4, 9: 4, 11: 6, 13: 7, 17: 8, 21: 10}


@dataclass(frozen=True)
class Tiny:
    """A graph without its header, the shapes of its weights, and the shape (or highest integer) of each input.

    ``inside`` has weights of bodies: by the body's name, and the weight's. Functions are of the domain ``local``.
    """

    text: str
    weights: Mapping[str, tuple[int, ...]]
    feeds: Mapping[str, tuple[tuple[int, ...], int | None]]
    constants: Mapping[str, np.ndarray] | None = None
    inside: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)

    def proto(self, opset: int = 17, seed: int = 0, *, as_inputs: bool = False) -> onnx.ModelProto:
        """The model, with weights of variance 1/(elements per channel), so that values keep their size."""
        local = ', "local" : 1' if "local." in self.text else ""
        header = f'<ir_version: {IR_OF_OPSET[opset]}, opset_import: ["" : {opset}{local}]>\n'
        model = parser.parse_model(header + self.text)
        rng = np.random.default_rng(seed)
        constants = {name: normal(rng, shape) for name, shape in self.weights.items()}
        for name, array in (constants | dict(self.constants or {})).items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))
            if as_inputs:
                info = onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
                )
                model.graph.input.append(info)
        for body in bodies(model.graph):
            for name, shape in self.inside.get(body.name, {}).items():
                body.initializer.append(numpy_helper.from_array(normal(rng, shape), name))
        onnx.checker.check_model(model)
        return model

    def save(self, path: Path, opset: int = 17, seed: int = 0) -> Path:
        """Write the model."""
        onnx.save(self.proto(opset, seed), path)
        return path

    def samples(self, count: int = 32, seed: int = 1) -> dict[str, np.ndarray]:
        """Feeds with ``count`` samples."""
        rng = np.random.default_rng(seed)
        return {
            name: rng.standard_normal((count, *shape)).astype(np.float32)
            if highest is None
            else rng.integers(0, highest, (count, *shape))
            for name, (shape, highest) in self.feeds.items()
        }


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The branches and bodies of its nodes, and what is inside them."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
                yield from bodies(attribute.g)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Weights float32 [*shape] that keep the size of what they are multiplied with."""
    spread = (np.prod(shape) / max(shape[0], 1)) ** 0.5 if len(shape) > 1 else 4.0
    return (rng.standard_normal(shape) / spread).astype(np.float32)


def linear(batch: str | int = "N", width: int = 64) -> Tiny:
    """Two MatMuls with a bias and a ReLU between."""
    return Tiny(
        f"g (float[{batch}, {width}] x) => (float[{batch}, 10] y) "
        "{ m = MatMul (x, w1)  h = Add (m, b1)  r = Relu (h)  y = MatMul (r, w2) }",
        {"w1": (width, 64), "b1": (64,), "w2": (64, 10)},
        {"x": ((width,), None)},
    )


CONV_BN = Tiny(
    """g (float[N, 3, 8, 8] image) => (float[N, 10] logits) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w1)
        b = BatchNormalization (a, gain, shift, mean, variance)
        c = Relu (b)
        d = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (c, w2, b2)
        e = Relu (d)
        p = GlobalAveragePool (e)
        f = Flatten (p)
        logits = Gemm <transB = 1> (f, w3, b3)
    }""",
    {
        "w1": (16, 3, 3, 3),
        "shift": (16,),
        "mean": (16,),
        "w2": (32, 16, 3, 3),
        "b2": (32,),
        "w3": (10, 32),
        "b3": (10,),
    },
    {"image": ((3, 8, 8), None)},
    {
        "gain": np.linspace(0.5, 2, 16, dtype=np.float32),
        "variance": np.linspace(0.5, 3, 16, dtype=np.float32),
    },
)

RESIDUAL = Tiny(
    """g (float[N, 8, 8, 8] x) => (float[N, 8, 4, 4] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (b, w2, b2)
        d = Add (c, x)
        e = Relu (d)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)
        y = Conv (m, w3, b3)
    }""",
    {"w1": (8, 8, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1), "b3": (8,)},
    {"x": ((8, 8, 8), None)},
)

CONV1D = Tiny(
    """g (float[N, 4, 32] x) => (float[N, 16, 16] y) {
        a = Conv <kernel_shape = [5], pads = [2, 2], strides = [2]> (x, w1, b1)
        r = Relu (a)
        y = Conv <kernel_shape = [3], pads = [2, 2], dilations = [2]> (r, w2)
    }""",
    {"w1": (16, 4, 5), "b1": (16,), "w2": (16, 16, 3)},
    {"x": ((4, 32), None)},
)

GROUPED = Tiny(
    """g (float[N, 16, 8, 8] x) => (float[N, 32, 8, 8] y) {
        a = Conv <group = 16, pads = [1, 1, 1, 1]> (x, depthwise, b1)
        six = Constant <value_float = 6.0> ()
        zero = Constant <value_float = 0.0> ()
        r = Clip (a, zero, six)
        y = Conv <group = 4, pads = [1, 1, 1, 1]> (r, grouped, b2)
    }""",
    {"depthwise": (16, 1, 3, 3), "b1": (16,), "grouped": (32, 4, 3, 3), "b2": (32,)},
    {"x": ((16, 8, 8), None)},
)

CONV_TRANSPOSE = Tiny(
    """g (float[N, 8, 6, 6] x) => (float[N, 4, 12, 12] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        r = Relu (a)
        y = ConvTranspose <strides = [2, 2], kernel_shape = [2, 2]> (r, w2, b2)
    }""",
    {"w1": (16, 8, 3, 3), "b1": (16,), "w2": (16, 4, 2, 2), "b2": (4,)},
    {"x": ((8, 6, 6), None)},
)

GEMM = Tiny(
    """g (float[N, 32] x) => (float[N, 10] y) {
        a = Gemm (x, w1, b1)
        r = Relu (a)
        c = Gemm <transB = 1> (r, w2, b2)
        t = Tanh (c)
        d = Gemm (t, w3, b3)
        s = Sigmoid (d)
        y = Gemm <transB = 1> (s, w4)
    }""",
    {"w1": (32, 64), "b1": (64,), "w2": (32, 64), "b2": (32,), "w3": (32, 32), "b3": (32,), "w4": (10, 32)},
    {"x": ((32,), None)},
)

MATMUL_ADD = Tiny(
    """g (float[N, 8, 32] x) => (float[N, 8, 32] y) {
        a = MatMul (x, w1)
        b = Add (a, b1)
        r = Relu (b)
        c = MatMul (r, w2)
        y = Add (b2, c)
    }""",
    {"w1": (32, 128), "b1": (128,), "w2": (128, 32), "b2": (32,)},
    {"x": ((8, 32), None)},
)

EMBEDDING = Tiny(
    """g (int64[N, 8] ids) => (float[N, 8, 16] y) {
        e = Gather (table, ids)
        a = MatMul (e, w1)
        r = Relu (a)
        y = MatMul (r, w2)
    }""",
    {"table": (50, 32), "w1": (32, 64), "w2": (64, 16)},
    {"ids": ((8,), 50)},
)

ATTENTION = Tiny(
    """g (float[N, 8, 32] x) => (float[N, 8, 32] y) {
        n = LayerNormalization (x, gain, shift)
        q = MatMul (n, wq)
        k = MatMul (n, wk)
        v = MatMul (n, wv)
        t = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (q, t)
        p = Softmax <axis = -1> (s)
        o = MatMul (p, v)
        z = MatMul (o, wo)
        y = Add (z, x)
    }""",
    {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "wo": (32, 32), "shift": (32,)},
    {"x": ((8, 32), None)},
    {"gain": np.linspace(0.5, 2, 32, dtype=np.float32)},
)

LSTM = Tiny(
    """g (float[N, 6, 16] x) => (float[N, 6, 32] y, float[1, N, 32] state) {
        t = Transpose <perm = [1, 0, 2]> (x)
        h, state = LSTM <hidden_size = 32> (t, wx, wh, b)
        s = Transpose <perm = [2, 0, 1, 3]> (h)
        shape = Constant <value_ints = [0, 6, 32]> ()
        y = Reshape (s, shape)
    }""",
    {"wx": (1, 128, 16), "wh": (1, 128, 32), "b": (1, 256)},
    {"x": ((6, 16), None)},
)

SHARED = Tiny(
    """g (float[N, 32] x) => (float[N, 32] y) {
        a = MatMul (x, w)
        c = Add (a, b)
        r = Relu (c)
        y = MatMul (r, w)
    }""",
    {"w": (32, 32), "b": (32,)},
    {"x": ((32,), None)},
)

TIED = Tiny(
    """g (int64[N, 6] ids) => (float[N, 6, 40] y) {
        e = Gather (table, ids)
        a = MatMul (e, w)
        r = Relu (a)
        t = Transpose <perm = [1, 0]> (table)
        y = MatMul (r, t)
    }""",
    {"table": (40, 32), "w": (32, 32)},
    {"ids": ((6,), 40)},
)

TRANSPOSED = Tiny(
    """g (float[N, 32] x) => (float[N, 24] y) {
        t = Transpose <perm = [1, 0]> (w1)
        a = MatMul (x, t)
        c = Add (a, b)
        r = Relu (c)
        y = MatMul (r, w2)
    }""",
    {"w1": (64, 32), "b": (64,), "w2": (64, 24)},
    {"x": ((32,), None)},
)

SEVERAL = Tiny(
    """g (float[N, 32] x, int64[N] row) => (float[N, 32] sum, int64[N] best, float[N, 32] left) {
        left = MatMul (x, w1)
        right = Gather (table, row)
        sum = Add (left, right)
        best = ArgMax <axis = 1, keepdims = 0> (sum)
    }""",
    {"w1": (32, 32), "table": (20, 32)},
    {"x": ((32,), None), "row": ((), 20)},
)

GEMM_SCALED = Tiny(
    """g (float[N, 32] x) => (float[N, 32] y) {
        a = Gemm <alpha = 0.5, beta = 2.0> (x, w1, b1)
        r = Relu (a)
        b = Gemm <alpha = 2.0, beta = 0.5, transB = 1> (r, w2, b2)
        t = Transpose <perm = [1, 0]> (b)
        y = Gemm <transA = 1, beta = 3.0> (t, w3, x)
    }""",
    {"w1": (32, 64), "b1": (64,), "w2": (32, 64), "b2": (32,), "w3": (32, 32)},
    {"x": ((32,), None)},
)

WEIGHT_ON_THE_LEFT = Tiny(
    """g (float[N, 32, 8] x) => (float[N, 16, 8] y) {
        a = MatMul (w1, x)
        r = Relu (a)
        y = MatMul (w2, r)
    }""",
    {"w1": (64, 32), "w2": (16, 64)},
    {"x": ((32, 8), None)},
)

BATCHED_WEIGHT = Tiny(
    """g (float[N, 4, 8, 32] x) => (float[N, 4, 8, 16] y) {
        a = MatMul (x, w1)
        r = Relu (a)
        y = MatMul (r, w2)
    }""",
    {"w1": (4, 32, 64), "w2": (4, 64, 16)},
    {"x": ((4, 8, 32), None)},
)

BIAS_FROM_ELSEWHERE = Tiny(
    """g (float[N, 32] x, float[N, 64] more) => (float[N, 64] y, float[N, 64] twice) {
        a = Gemm (x, w1, more)
        b = MatMul (x, w2)
        c = Add (b, one)
        y = Relu (c)
        twice = Mul (a, c)
    }""",
    {"w1": (32, 64), "w2": (32, 64), "one": (1,)},
    {"x": ((32,), None), "more": ((64,), None)},
)

LSTM_WITH_LENGTHS = Tiny(
    """g (float[N, 6, 16] x, int64[N] long, float[N, 1, 32] start) => (float[6, 1, N, 32] y) {
        none = Constant <value_int = 0> ()
        six = Constant <value_int = 6> ()
        zeros = Mul (long, none)
        sixes = Add (zeros, six)
        lengths = Cast <to = 6> (sixes)
        t = Transpose <perm = [1, 0, 2]> (x)
        h = Transpose <perm = [1, 0, 2]> (start)
        c = Mul (h, h)
        y = LSTM <hidden_size = 32> (t, wx, wh, b, lengths, h, c)
    }""",
    {"wx": (1, 128, 16), "wh": (1, 128, 32), "b": (1, 256)},
    {"x": ((6, 16), None), "long": ((), 6), "start": ((1, 32), None)},
)

NAMES_TAKEN = Tiny(
    """g (float[N, 32] x, float[N, 32] x_scale) => (float[N, 32] y, float[N, 32] x_quantized) {
        x_quantized = Add (x, x_scale)
        w_cast = MatMul (x, w)
        w_f32 = Add (w_cast, w_step)
        w_codes = Relu (w_f32)
        y = MatMul (w_codes, w_scale)
    }""",
    {"w": (32, 32), "w_step": (32,), "w_scale": (32, 32)},
    {"x": ((32,), None), "x_scale": ((32,), None)},
)

BRANCHES = Tiny(
    """g (float[N, 8, 8, 8] x) => (float[N, 24, 4, 4] y, float[N, 8, 8, 8] inner) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        inner = Relu (a)
        b = Conv <pads = [1, 1, 1, 1]> (inner, w2, b2)
        c = Concat <axis = 1> (inner, b)
        d = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (c)
        e = Sigmoid (d)
        f = Mul (d, e)
        y = Conv (f, w3, b3)
    }""",
    {"w1": (8, 8, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (24, 16, 1, 1), "b3": (24,)},
    {"x": ((8, 8, 8), None)},
)

IF = Tiny(
    """g (float[N, 32] x) => (float[N, 16] y) {
        total = ReduceSum <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        high = Greater (total, zero)
        y = If (high) <
            then_branch = up () => (float[N, 16] a) {
                h = MatMul (x, w)
                r = Relu (h)
                a = MatMul (r, both)
            },
            else_branch = down () => (float[N, 16] b) {
                h = Gemm <transB = 1, alpha = 0.5> (x, w, c)
                r = Tanh (h)
                b = MatMul (r, both)
            }
        >
    }""",
    {"both": (64, 16)},
    {"x": ((32,), None)},
    inside={"up": {"w": (32, 64)}, "down": {"w": (64, 32), "c": (64,)}},
)

LOOP = Tiny(
    """g (float[N, 32] x) => (float[N, 32] y, float[3, N, 32] each) {
        times = Constant <value_int = 3> ()
        y, each = Loop (times, "", x) <
            body = again (int64 i, bool go, float[N, 32] before) => (bool on, float[N, 32] after, float[N, 32] seen) {
                on = Identity (go)
                h = MatMul (before, w)
                c = Add (h, b)
                r = Relu (c)
                m = MatMul (r, outer)
                after = Add (m, x)
                seen = Identity (m)
            }
        >
    }""",
    {"outer": (64, 32)},
    {"x": ((32,), None)},
    inside={"again": {"w": (32, 64), "b": (64,)}},
)

SCAN = Tiny(
    """g (float[N, 6, 32] x) => (float[N, 32] last, float[6, N, 32] all) {
        t = Transpose <perm = [1, 0, 2]> (x)
        first = ReduceMean <axes = [1], keepdims = 0> (x)
        start = MatMul (first, w0)
        last, all = Scan <
            num_scan_inputs = 1,
            body = step (float[N, 32] before, float[N, 32] now) => (float[N, 32] after, float[N, 32] out) {
                a = MatMul (now, wx)
                b = MatMul (before, wh)
                c = Add (a, b)
                after = Tanh (c)
                out = Identity (after)
            }
        > (start, t)
    }""",
    {"w0": (32, 32), "wh": (32, 32)},
    {"x": ((6, 32), None)},
    inside={"step": {"wx": (32, 32)}},
)

ORDERED_GATES = """
                {name}_i = Slice ({source}, zero, one, zero)
                {name}_fc = Slice ({source}, one, three, zero)
                {name}_o = Slice ({source}, three, four, zero)
                {name}_iofc = Concat <axis = 0> ({name}_i, {name}_o, {name}_fc)
                {name} = Unsqueeze ({name}_iofc, zero)
"""
"""Gates of an LSTM as PyTorch orders them, in the order of ONNX: as older exporters left it to the engine."""

IF_LSTM = Tiny(
    f"""g (float[N, 6, 16] x) => (float[1, N, 32] y) {{
        t = Transpose <perm = [1, 0, 2]> (x)
        total = ReduceSum <keepdims = 0> (x)
        none = Constant <value_float = 0.0> ()
        high = Greater (total, none)
        zero = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [32]> ()
        three = Constant <value_ints = [96]> ()
        four = Constant <value_ints = [128]> ()
        y = If (high) <
            then_branch = up () => (float[1, N, 32] a) {{
                {ORDERED_GATES.format(name="w", source="weight_ih")}
                {ORDERED_GATES.format(name="r", source="weight_hh")}
                all, a = LSTM <hidden_size = 32> (t, w, r, bias)
            }},
            else_branch = down () => (float[1, N, 32] b) {{
                {ORDERED_GATES.format(name="w", source="weight_ih")}
                {ORDERED_GATES.format(name="r", source="weight_hh")}
                other = Neg (t)
                all, b = LSTM <hidden_size = 32> (other, w, r, bias)
            }}
        >
    }}""",
    {"weight_ih": (128, 16), "weight_hh": (128, 32), "bias": (1, 256)},
    {"x": ((6, 16), None)},
)

RANK_UNKNOWN = Tiny(
    """g (float[N, 32, 16] x) => (float[N, 32, 16] y) {
        largest = ReduceMax <keepdims = 0> (x)
        none = Constant <value_float = -1000.0> ()
        always = Greater (largest, none)
        two = Constant <value_ints = [2]> ()
        c = If (always) <
            then_branch = same () => (a) { a = Identity (x) },
            else_branch = more () => (b) { b = Unsqueeze (x, two) }
        >
        y = Conv <kernel_shape = [1]> (c, w)
    }""",
    {"w": (32, 32, 1)},
    {"x": ((32, 16), None)},
)
"""What one branch gives has three axes, the other's four: OpenVINO reads no convolution of it, as in Silero VAD."""

NESTED = Tiny(
    """g (float[N, 32] x) => (float[N, 32] y) {
        times = Constant <value_int = 2> ()
        y = Loop (times, "", x) <
            body = again (int64 i, bool go, float[N, 32] before) => (bool on, float[N, 32] after) {
                on = Identity (go)
                none = Constant <value_int = 0> ()
                first = Equal (i, none)
                h = If (first) <
                    then_branch = one () => (float[N, 32] a) { a = MatMul (before, w) },
                    else_branch = two () => (float[N, 32] b) { b = MatMul (before, outer) }
                >
                after = Add (h, x)
            }
        >
    }""",
    {"outer": (32, 32)},
    {"x": ((32,), None)},
    inside={"one": {"w": (32, 32)}},
)

FUNCTIONS = Tiny(
    """g (float[N, 32] x) => (float[N, 16] y) {
        a = local.dense (x, w1, b1)
        h = local.twice (a, w2, b2)
        y = MatMul (h, w3)
    }
    <domain: "local", opset_import: ["" : 17, "local" : 1]>
    dense (x, w, b) => (y) {
        h = MatMul (x, w)
        s = Add (h, b)
        y = Relu (s)
    }
    <domain: "local", opset_import: ["" : 17, "local" : 1]>
    twice (x, w, b) => (y) {
        h = local.dense (x, w, b)
        y = local.dense (h, w, b)
    }""",
    {"w1": (32, 64), "b1": (64,), "w2": (64, 64), "b2": (64,), "w3": (64, 16)},
    {"x": ((32,), None)},
)

FUNCTION_IN_A_BRANCH = Tiny(
    """g (float[N, 32] x) => (float[N, 16] y) {
        total = ReduceSum <keepdims = 0> (x)
        zero = Constant <value_float = 0.0> ()
        high = Greater (total, zero)
        y = local.choose (x, high, w, v)
    }
    <domain: "local", opset_import: ["" : 17, "local" : 1]>
    choose (x, high, w, v) => (y) {
        y = If (high) <
            then_branch = up () => (a) { a = local.dense (x, w) },
            else_branch = down () => (b) { b = local.dense (x, v) }
        >
    }
    <domain: "local", opset_import: ["" : 17]>
    dense (x, w) => (y) {
        h = MatMul (x, w)
        y = Relu (h)
    }""",
    {"w": (32, 16), "v": (32, 16)},
    {"x": ((32,), None)},
)

CONTROL_FLOW: dict[str, Tiny] = {
    "if": IF,
    "loop": LOOP,
    "scan": SCAN,
    "if_lstm": IF_LSTM,
    "nested": NESTED,
    "functions": FUNCTIONS,
    "function_in_a_branch": FUNCTION_IN_A_BRANCH,
}
"""Weights in branches, bodies and functions."""

MODELS: dict[str, Tiny] = {
    "conv_bn": CONV_BN,
    "residual": RESIDUAL,
    "conv1d": CONV1D,
    "grouped": GROUPED,
    "conv_transpose": CONV_TRANSPOSE,
    "gemm": GEMM,
    "matmul_add": MATMUL_ADD,
    "embedding": EMBEDDING,
    "attention": ATTENTION,
    "lstm": LSTM,
    "shared": SHARED,
    "tied": TIED,
    "transposed": TRANSPOSED,
    "several": SEVERAL,
    "gemm_scaled": GEMM_SCALED,
    "weight_on_the_left": WEIGHT_ON_THE_LEFT,
    "batched_weight": BATCHED_WEIGHT,
    "bias_from_elsewhere": BIAS_FROM_ELSEWHERE,
    "lstm_with_lengths": LSTM_WITH_LENGTHS,
    "names_taken": NAMES_TAKEN,
    "branches": BRANCHES,
    "linear": linear(),
    "fixed_batch": linear(batch=4),
    **CONTROL_FLOW,
}
"""Every kind of model that must go through."""
