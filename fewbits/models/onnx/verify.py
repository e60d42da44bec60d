"""Read a written file back and hold it against the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits.errors import VerificationError
from fewbits.models.onnx.batch_norm import statistics
from fewbits.models.onnx.bodies import all_graphs
from fewbits.models.onnx.encode import ONNX_TYPES, Blocks, each_direction, narrow
from fewbits.models.onnx.load import constants
from fewbits.models.onnx.names import Names, stems
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import BiasPlan, Plan, WeightPlan

if TYPE_CHECKING:
    import onnx_ir as ir


def read_back(path: Path, plan: Plan, info: ModelInfo, folded: ir.Graph) -> dict[str, int]:
    """Check that codes, scales, zero points, inputs and outputs are in the file as planned, and the rest as it was.

    Args:
        path: the written file.
        plan: what it was written from.
        info: the model's inputs and outputs.
        folded: the graph that the plan was made for.

    Returns:
        bytes of the file's constants per dtype, by ONNX's name in lower case.

    Raises:
        VerificationError: something differs; the file and the tensor are named.
    """
    import onnx_ir as ir

    model = ir.load(path)
    stored = _Stored(path, model.graph, Names(folded))
    stem_of = stems(plan)
    for layer in plan.layers:
        for weight in layer.weights:
            _expect_weight(stored, stem_of[layer.node, weight.name], weight)
        if layer.bias is not None:
            _expect_bias(stored, f"{layer.bias.name}_of_{layer.node}", layer.bias)
    for activation in plan.activations:
        name = activation.site.tensor
        stored.expect("FLOAT", {f"{name}_scale": np.array(activation.scale, np.float32)})
        zero_point = np.array(activation.zero_point)
        stored.expect(ONNX_TYPES[activation.qtype], {f"{name}_zero_point": zero_point})
        if activation.smoothing is not None:
            stored.expect("FLOAT", {f"{name}_smoothing": (1 / activation.smoothing).astype(np.float32)})
    for scaling in plan.scalings:
        stored.expect("FLOAT", {f"{scaling.name}_protection": (1 / scaling.divisor).astype(np.float32)})
    for norm in plan.norms:
        for name, values in statistics(norm).values():
            stored.expect("FLOAT", {name: values})
    for one in all_graphs(folded):
        for name, value in one.initializers.items():
            stored.expect_unchanged(name, value)
    for kind, wanted, got in (
        ("inputs", info.inputs, model.graph.inputs),
        ("outputs", info.outputs, model.graph.outputs),
    ):
        expected, found = [one.name for one in wanted], [value.name for value in got]
        if expected != found:
            raise VerificationError(f"{path}: {kind} are {found}, but the model's are {expected}")
    return bytes_by_dtype(path)


class _Stored:
    """The constants of a written file, asked for by the names that were wanted for them."""

    def __init__(self, path: Path, graph: ir.Graph, names: Names) -> None:
        initializers = {name: value for one in all_graphs(graph) for name, value in one.initializers.items()}
        found = {name: value.const_value for name, value in initializers.items()}
        self.readers = {name: [use.node for use in value.uses()] for name, value in initializers.items()}
        self.path, self.names = path, names
        self.constants = {name: tensor for name, tensor in found.items() if tensor is not None}

    def __contains__(self, name: str) -> bool:
        return self.names(name) in self.constants

    def expect(self, dtype: str, asked: Mapping[str, np.ndarray]) -> None:
        """At least one of these is in the file, and each that is holds its array."""
        found = [name for name in asked if name in self]
        if not found:
            raise VerificationError(
                f"{self.path}: constant {next(iter(asked))!r} is missing; the plan has it"
            )
        for name in found:
            self._compare(self.names(name), dtype, asked[name])

    def expect_dequantized(self, codes: str, axis: int | None, group_size: int | None) -> None:
        """Where DequantizeLinear reads these codes, their scales run along that axis."""
        readers = self.readers.get(self.names(codes), ())
        behind = [use.node for node in readers if node.op_type == "Cast" for use in node.outputs[0].uses()]
        for node in (*readers, *behind):
            if node.op_type == "DequantizeLinear":
                wanted = {"axis": axis, "block_size": group_size}
                for name, value in wanted.items():
                    found = node.attributes[name].as_int() if name in node.attributes else None
                    if found != value:
                        raise VerificationError(
                            f"{self.path}: constant {codes!r} is read with {name} {found}, and not {value}"
                        )

    def expect_unchanged(self, name: str, original: ir.Value) -> None:
        """A constant of the folded graph that the file still has is the same."""
        tensor = original.const_value
        if name in self.constants and tensor is not None:
            self._compare(name, tensor.dtype.name, tensor.numpy())

    def _compare(self, name: str, dtype: str, planned: np.ndarray) -> None:
        tensor = self.constants[name]
        if tensor.dtype.name != dtype:
            raise VerificationError(f"{self.path}: constant {name!r} is {tensor.dtype.name}, and not {dtype}")
        array = tensor.numpy()
        if array.shape != planned.shape:
            shapes = f"{list(array.shape)}, and not {list(planned.shape)}"
            raise VerificationError(f"{self.path}: constant {name!r} has the shape {shapes}")
        if not _equal(array, planned):
            raise VerificationError(f"{self.path}: constant {name!r} differs from the plan")


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """The same numbers, in whatever types."""
    if a.dtype == b.dtype and a.dtype.kind not in "fV":  # V: narrow floats
        return np.array_equal(a, b)
    return np.array_equal(a.astype(np.float64), b.astype(np.float64), equal_nan=True)


def _expect_weight(stored: _Stored, stem: str, weight: WeightPlan) -> None:
    q = weight.codes
    if q is None:
        dtype = ONNX_TYPES[weight.scheme.qtype]
        stored.expect(dtype, {f"{stem}_{weight.scheme.qtype}": narrow(weight)})
        return
    dtype = ONNX_TYPES[q.qtype.name]
    codes = q.codes.numpy()
    if q.codebook is not None:
        stored.expect(dtype, {f"{stem}_codes": codes})
        stored.expect("FLOAT", {f"{stem}_entries": q.codebook.numpy()})
        return
    assert q.scale is not None
    grouped, axis = q.group_size is not None, q.channel_axis
    turned = codes.swapaxes(-1, -2)
    blocks = Blocks.of(stem, q)
    every = {f"{stem}_codes": codes, f"{stem}_codes_turned": turned}
    if blocks is not None:
        every[f"{stem}_codes_blocks"] = blocks.split(codes)
    stored.expect(dtype, every)

    def as_operand(parameter: np.ndarray) -> np.ndarray:
        """In the shape that DequantizeLinear takes: along the axis of the codes that it belongs to."""
        return parameter.T if grouped and axis == 1 else parameter

    def spread(parameter: np.ndarray) -> np.ndarray:
        """In the shape that meets the codes in a Mul or Sub."""
        if blocks is not None:
            return blocks.spread(parameter)
        return parameter.reshape(
            [-1 if i == axis else 1 for i in range(codes.ndim)] if parameter.ndim else ()
        )

    scale = q.scale.numpy()
    scales = {f"{stem}_scale": as_operand(scale), f"{stem}_step": spread(scale)}
    if f"{stem}_scale_each" in stored:
        each = each_direction(scale, turned)
        scales[f"{stem}_scale_each"] = each
        stored.expect(dtype, {f"{stem}_zero_each": np.zeros(each.shape, codes.dtype)})
    stored.expect("FLOAT", scales)
    if q.free_zero_point is not None:
        stored.expect("FLOAT", {f"{stem}_offset": spread(q.free_zero_point.numpy())})
    elif q.zero_point is not None:
        zero_point = q.zero_point.numpy()
        if f"{stem}_offset" in stored:
            stored.expect("FLOAT", {f"{stem}_offset": spread(zero_point)})
        else:
            stored.expect(dtype, {f"{stem}_zero_point": as_operand(zero_point)})
    elif f"{stem}_zero_point" in stored:
        stored.expect(dtype, {f"{stem}_zero_point": np.zeros_like(scale, codes.dtype)})
    elif f"{stem}_int8_zero" in stored:
        stored.expect("INT8", {f"{stem}_int8_zero": np.zeros_like(scale, np.int8)})
    along = None if axis is None else 1 - axis if grouped else axis
    stored.expect_dequantized(f"{stem}_codes", along, q.group_size)


def _expect_bias(stored: _Stored, name: str, bias: BiasPlan) -> None:
    if bias.scale is None:
        stored.expect("FLOAT", {name: bias.values})
    else:
        codes = np.round(bias.values.astype(np.float64) / bias.scale).astype(np.int32)
        stored.expect("INT32", {f"{name}_codes": codes})
        stored.expect("FLOAT", {f"{name}_scale": bias.scale})


def bytes_by_dtype(path: Path) -> dict[str, int]:
    """Bytes of a file's constants per dtype, by ONNX's name in lower case, the most first."""
    import onnx_ir as ir

    found: Counter[str] = Counter()
    for tensor in constants(ir.load(path)):
        found[tensor.dtype.name.lower()] += tensor.nbytes
    return dict(found.most_common())
