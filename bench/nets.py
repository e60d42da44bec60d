"""Small models of the kinds that the capability tables speak of, made of ONNX text and random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Net:
    """A model from `x` to `y`, float32.

    Attributes:
        text: its graph.
        weights: shapes of the weights, which are drawn at random so that values keep their size through a layer.
        shape: of one sample.
        constants: other constants that the graph names.
        opset: of the file.
    """

    text: str
    weights: Mapping[str, Shape]
    shape: Shape
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17

    def save(self, path: Path) -> Path:
        """Write it."""
        header = f'<ir_version: {10 if self.opset > 20 else 8}, opset_import: ["" : {self.opset}]>\n'
        model = parser.parse_model(header + self.text)
        rng = np.random.default_rng(0)
        arrays = {name: _normal(rng, shape) for name, shape in self.weights.items()}
        for name, array in (arrays | dict(self.constants)).items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path

    def samples(self, number: int) -> dict[str, np.ndarray]:
        """Normal values."""
        values = np.random.default_rng(1).standard_normal((number, *self.shape))
        return {"x": values.astype(np.float32)}


def _normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    terms = {3: shape[-1], 4: np.prod(shape[1:])}.get(len(shape), shape[0])
    spread = terms**0.5 if len(shape) > 1 else 10.0
    return (rng.standard_normal(shape) / spread).astype(np.float32)


def _graph(shape: Shape, out: Shape, lines: Sequence[str]) -> str:
    given, gives = (", ".join(("N", *map(str, axes))) for axes in (shape, out))
    return f"g (float[{given}] x) => (float[{gives}] y) {{\n" + "\n".join(lines) + "\n}"


def resnet() -> Net:
    """ResNet-20 for 32 x 32 pixels, batch normalization folded."""
    lines: list[str] = []
    weights: dict[str, Shape] = {}

    def conv(name: str, source: str, channels: tuple[int, int], kernel: int = 3, stride: int = 1) -> str:
        weights[f"{name}_w"], weights[f"{name}_b"] = (*channels[::-1], kernel, kernel), (channels[1],)
        pad = kernel // 2
        lines.append(
            f"{name} = Conv <pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}]>"
            f" ({source}, {name}_w, {name}_b)"
        )
        return name

    def relu(name: str) -> str:
        lines.append(f"{name}_r = Relu ({name})")
        return f"{name}_r"

    now = relu(conv("stem", "x", (3, 16)))
    width = 16
    for stage, out in enumerate((16, 32, 64)):
        for block in range(3):
            name, stride = f"s{stage}b{block}", 2 if out > width else 1
            first = relu(conv(f"{name}_1", now, (width, out), stride=stride))
            second = conv(f"{name}_2", first, (out, out))
            short = conv(f"{name}_0", now, (width, out), 1, stride) if out > width else now
            lines.append(f"{name} = Add ({second}, {short})")
            now, width = relu(name), out
    lines += [f"pooled = GlobalAveragePool ({now})", "flat = Flatten (pooled)", "y = Gemm (flat, w, b)"]
    weights |= {"w": (64, 10), "b": (10,)}
    return Net(_graph((3, 32, 32), (10,), lines), weights, (3, 32, 32))


def transformer(layers: int = 2, width: int = 384, heads: int = 12, tokens: int = 128) -> Net:
    """Encoder layers of MiniLM's size."""
    lines: list[str] = []
    weights: dict[str, Shape] = {}
    constants = {
        "split": np.array([0, tokens, heads, width // heads]),
        "joined": np.array([0, tokens, width]),
        "root": np.float32([(width // heads) ** -0.5]),
        "gain": np.ones(width, np.float32),
        "shift": np.zeros(width, np.float32),
        "half": np.float32([0.5]),
        "one": np.float32([1]),
        "sqrt2": np.float32([2**0.5]),
    }

    def linear(name: str, source: str, rows: int, columns: int) -> str:
        weights[f"{name}_w"], weights[f"{name}_b"] = (rows, columns), (columns,)
        lines.extend([f"{name}_m = MatMul ({source}, {name}_w)", f"{name} = Add ({name}_b, {name}_m)"])
        return name

    now = "x"
    for layer in range(layers):
        n = f"l{layer}"
        for part, turned in (("q", "0, 2, 1, 3"), ("k", "0, 2, 3, 1"), ("v", "0, 2, 1, 3")):
            linear(f"{n}{part}", now, width, width)
            lines.append(f"{n}{part}_s = Reshape ({n}{part}, split)")
            lines.append(f"{n}{part}_t = Transpose <perm = [{turned}]> ({n}{part}_s)")
        lines += [
            f"{n}p = MatMul ({n}q_t, {n}k_t)",
            f"{n}ps = Mul ({n}p, root)",
            f"{n}pp = Softmax <axis = -1> ({n}ps)",
            f"{n}c = MatMul ({n}pp, {n}v_t)",
            f"{n}c_t = Transpose <perm = [0, 2, 1, 3]> ({n}c)",
            f"{n}c_j = Reshape ({n}c_t, joined)",
        ]
        linear(f"{n}o", f"{n}c_j", width, width)
        lines += [f"{n}a = Add ({n}o, {now})", f"{n}an = LayerNormalization ({n}a, gain, shift)"]
        linear(f"{n}f", f"{n}an", width, 4 * width)
        lines += [
            f"{n}g1 = Div ({n}f, sqrt2)",
            f"{n}g2 = Erf ({n}g1)",
            f"{n}g3 = Add ({n}g2, one)",
            f"{n}g4 = Mul ({n}f, {n}g3)",
            f"{n}g = Mul ({n}g4, half)",
        ]
        linear(f"{n}h", f"{n}g", 4 * width, width)
        lines += [f"{n}b = Add ({n}h, {n}an)", f"{n}n = LayerNormalization ({n}b, gain, shift)"]
        now = f"{n}n"
    lines.append(f"y = Identity ({now})")
    shape = (tokens, width)
    return Net(_graph(shape, shape, lines), weights, shape, constants)


def shuffled(blocks: int = 4, channels: int = 64, size: int = 28) -> Net:
    """Pooling, then convolutions of one pixel whose channels are shuffled: reshaped, transposed, reshaped."""
    lines = [
        "stem = Conv <pads = [1, 1, 1, 1]> (x, stem_w, stem_b)",
        "stem_r = Relu (stem)",
        "pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (stem_r)",
    ]
    weights: dict[str, Shape] = {"stem_w": (channels, 3, 3, 3), "stem_b": (channels,)}
    constants = {
        "pairs": np.array([0, 2, channels // 2, size, size]),
        "flat": np.array([0, channels, size, size]),
    }
    now = "pooled"
    for block in range(blocks):
        n = f"b{block}"
        weights |= {f"{n}_w": (channels, channels, 1, 1), f"{n}_b": (channels,)}
        lines += [
            f"{n} = Conv ({now}, {n}_w, {n}_b)",
            f"{n}_r = Relu ({n})",
            f"{n}_p = Reshape ({n}_r, pairs)",
            f"{n}_t = Transpose <perm = [0, 2, 1, 3, 4]> ({n}_p)",
            f"{n}_f = Reshape ({n}_t, flat)",
        ]
        now = f"{n}_f"
    lines += [f"mean = GlobalAveragePool ({now})", "y = Flatten (mean)"]
    shape = (3, 2 * size, 2 * size)
    return Net(_graph(shape, (channels,), lines), weights, shape, constants)


def branching(blocks: int = 4, channels: int = 64) -> Net:
    """Blocks of three convolutions side by side, whose results are concatenated."""
    lines = ["stem = Conv <pads = [1, 1, 1, 1]> (x, stem_w, stem_b)", "now0 = Relu (stem)"]
    weights: dict[str, Shape] = {"stem_w": (channels, 3, 3, 3), "stem_b": (channels,)}
    kernels = {"a": (1, channels // 2), "b": (3, channels // 4), "c": (5, channels // 4)}
    for block in range(blocks):
        for name, (kernel, width) in kernels.items():
            n, pad = f"{name}{block}", kernel // 2
            weights |= {f"{n}_w": (width, channels, kernel, kernel), f"{n}_b": (width,)}
            lines.append(f"{n} = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (now{block}, {n}_w, {n}_b)")
            lines.append(f"{n}_r = Relu ({n})")
        lines.append(f"now{block + 1} = Concat <axis = 1> (a{block}_r, b{block}_r, c{block}_r)")
    lines += [f"mean = GlobalAveragePool (now{blocks})", "y = Flatten (mean)"]
    return Net(_graph((3, 28, 28), (channels,), lines), weights, (3, 28, 28))


def perceptron(layers: int = 4, width: int = 1024) -> Net:
    """Linear layers for samples of one axis: as PyTorch exports them, and as others do."""
    lines, now = [], "x"
    weights: dict[str, Shape] = {}
    for layer in range(layers):
        weights |= {f"w{layer}": (width, width), f"b{layer}": (width,)}
        if layer % 2:
            lines.append(f"p{layer} = MatMul ({now}, w{layer})")
            lines.append(f"m{layer} = Add (p{layer}, b{layer})")
        else:
            lines.append(f"m{layer} = Gemm <transB = 1> ({now}, w{layer}, b{layer})")
        lines.append(f"r{layer} = Relu (m{layer})")
        now = f"r{layer}"
    return Net(_graph((width,), (width,), [*lines, f"y = Identity ({now})"]), weights, (width,))


def recurrent(width: int = 256, steps: int = 32) -> Net:
    """An LSTM over a sequence, and a linear layer behind it."""
    lines = [
        "t = Transpose <perm = [1, 0, 2]> (x)",
        f"all, last = LSTM <hidden_size = {width}> (t, w, r, b)",
        "zero = Constant <value_ints = [0]> ()",
        "h = Squeeze (last, zero)",
        "y = MatMul (h, v)",
    ]
    weights = {"w": (1, 4 * width, width), "r": (1, 4 * width, width), "b": (1, 8 * width), "v": (width, 64)}
    return Net(_graph((steps, width), (64,), lines), weights, (steps, width))


def row(width: int = 4096) -> Net:
    """One row by a large matrix."""
    text = _graph((width,), (width,), ["y = MatMul (x, w)"])
    return Net(text, {"w": (width, width)}, (width,), opset=21)
