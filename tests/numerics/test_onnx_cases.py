"""The ONNX backend's node cases for quantization and casts to narrow types, bit by bit."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from fewbits.numerics import cast, find, pack, quantize_with, scale_zero_point, unpack
from fewbits.numerics.layout import layout_of
from fewbits.numerics.qtensor import QTensor

QTYPES = {
    TensorProto.INT2: "int2",
    TensorProto.UINT2: "uint2",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.FLOAT4E2M1: "fp4_e2m1",
    TensorProto.FLOAT8E4M3FN: "fp8_e4m3fn",
    TensorProto.FLOAT8E4M3FNUZ: "fp8_e4m3fnuz",
    TensorProto.FLOAT8E5M2: "fp8_e5m2",
    TensorProto.FLOAT8E5M2FNUZ: "fp8_e5m2fnuz",
    TensorProto.FLOAT8E8M0: "e8m0",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}
WIDE = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
}


# Every node case of onnx 1.23 for the operators in question, 30 + 116, by name.
QUANTIZE = [
    f"test_quantizelinear{suffix}"
    for suffix in (
        *("", "_axis", "_blocked_asymmetric", "_blocked_symmetric", "_e4m3fn", "_e5m2", "_float4e2m1"),
        *("_int16", "_int2", "_int4", "_uint16", "_uint2", "_uint4"),
    )
]
DEQUANTIZE = [
    f"test_dequantizelinear{suffix}"
    for suffix in (
        *("", "_axis", "_blocked", "_e4m3fn", "_e4m3fn_float16", "_e4m3fn_zero_point", "_e5m2"),
        *("_float4e2m1", "_int16", "_int2", "_int4", "_uint16", "_uint2", "_uint4"),
    )
]
DYNAMIC = [f"test_dynamicquantizelinear{suffix}" for suffix in ("", "_max_adjusted", "_min_adjusted")]

FP8 = ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")
BELOW_8 = ("FLOAT4E2M1", "INT2", "INT4", "UINT2", "UINT4")
NARROWING = [
    *(f"{source}_to_{target}" for source in ("FLOAT", "FLOAT16") for target in (*FP8, *BELOW_8)),
    *("FLOAT_to_BFLOAT16", "FLOAT_to_FLOAT16", "DOUBLE_to_FLOAT16"),
    *(f"no_saturate_{source}_to_{target}" for source in ("FLOAT", "FLOAT16") for target in FP8),
]
WIDENING = [
    *(f"{source}_to_{target}" for source in (*FP8, *BELOW_8) for target in ("FLOAT", "FLOAT16")),
    *("INT2_to_INT8", "INT4_to_INT8", "UINT2_to_UINT8", "UINT4_to_UINT8"),
    *("BFLOAT16_to_FLOAT", "FLOAT16_to_FLOAT", "FLOAT16_to_DOUBLE"),
]
TO_NARROW = [
    *(f"test_{node}_{pair}" for node in ("cast", "castlike") for pair in NARROWING),
    *(f"test_cast_e8m0_{source}_to_FLOAT8E8M0" for source in ("FLOAT", "FLOAT16")),
]
TO_WIDE = [
    *(f"test_{node}_{pair}" for node in ("cast", "castlike") for pair in WIDENING),
    *(f"test_cast_e8m0_FLOAT8E8M0_to_{target}" for target in ("FLOAT", "FLOAT16")),
]
# Neither end is narrow, so nothing here does them.
NOT_OURS = [
    f"test_{node}_{pair}" for node in ("cast", "castlike") for pair in ("DOUBLE_to_FLOAT", "FLOAT_to_DOUBLE")
]
OPERATORS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "CastLike"}


@lru_cache
def cases() -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return {case.name: case for case in collect_testcases(None)}


def test_none_is_left_out():
    """The lists above are what onnx has; the expanded twins are other graphs for the very same bytes."""
    listed = [*QUANTIZE, *DEQUANTIZE, *DYNAMIC, *TO_NARROW, *TO_WIDE, *NOT_OURS]
    assert len(listed) == len(set(listed)) == 13 + 14 + 3 + 60 + 52 + 4
    twins = {name for name in cases() if name.removesuffix("_expanded") in listed} - set(listed)
    there = {
        name
        for name, case in cases().items()
        if "_expanded" not in name and OPERATORS & {node.op_type for node in case.model.graph.node}
    }
    assert there == set(listed)
    assert len(twins) == 59
    for name in twins:
        (first,), (second,) = (cases()[n].data_sets for n in (name, name.removesuffix("_expanded")))
        for values, others in zip(first, second, strict=True):
            assert [bytes(Value(v).raw) for v in values] == [bytes(Value(v).raw) for v in others]


class Value:
    """A node's input or output: its ONNX type, shape and raw little-endian bytes."""

    def __init__(self, value: np.ndarray | TensorProto) -> None:
        proto = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))
        self.type, self.shape = proto.data_type, tuple(proto.dims)
        if not proto.HasField("raw_data"):
            proto = numpy_helper.from_array(numpy_helper.to_array(proto))
        self.raw = torch.from_numpy(np.frombuffer(proto.raw_data, np.uint8).copy())

    @property
    def row(self):
        return find(QTYPES[self.type])

    @property
    def codes(self) -> torch.Tensor:
        return unpack(self.raw, self.row, self.shape)

    @property
    def wide(self) -> torch.Tensor:
        if self.type in WIDE:
            return self.raw.view(WIDE[self.type]).reshape(self.shape)
        return QTensor(self.codes, self.row).dequantize()


def load(name: str) -> tuple[onnx.NodeProto, list[Value], list[Value]]:
    case = cases()[name]
    ((inputs, outputs),) = case.data_sets
    return case.model.graph.node[0], [Value(v) for v in inputs], [Value(v) for v in outputs]


def attributes(node: onnx.NodeProto) -> dict:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


class Blocks:
    """A node's granularity in our words; a blocked axis goes last, every other index being a channel."""

    def __init__(self, node: onnx.NodeProto, shape: tuple[int, ...], scale: Value) -> None:
        self.shape, self.axis = shape, attributes(node).get("axis", 1)
        self.group_size = attributes(node).get("block_size") or None
        per_tensor = self.group_size is None and scale.shape in ((), (1,))
        kept = 0 if self.group_size else self.axis
        self.words = {"channel_axis": None if per_tensor else kept, "group_size": self.group_size}

    def rows(self, value: torch.Tensor) -> torch.Tensor:
        return value.movedim(self.axis, -1).flatten(0, -2) if self.group_size else value

    def parameter(self, value: torch.Tensor) -> torch.Tensor:
        rows = self.rows(torch.empty(self.shape))
        return self.rows(value).reshape(layout_of(tuple(rows.shape), **self.words).parameter_shape)

    def undo(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.group_size:
            return rows
        others = [extent for axis, extent in enumerate(self.shape) if axis != self.axis]
        return rows.reshape(*others, self.shape[self.axis]).movedim(-1, self.axis).contiguous()


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantize_linear(name):
    node, (x, scale, *rest), (expected,) = load(name)
    blocks = Blocks(node, x.shape, scale)
    zero = blocks.parameter(rest[0].codes.int()) if rest and expected.row.kind == "int" else None
    q = quantize_with(blocks.rows(x.wide), expected.row, blocks.parameter(scale.wide), zero, **blocks.words)
    assert torch.equal(pack(blocks.undo(q.codes), expected.row), expected.raw)


@pytest.mark.parametrize("name", DEQUANTIZE)
def test_dequantize_linear(name):
    node, (x, scale, *rest), (expected,) = load(name)
    blocks = Blocks(node, x.shape, scale)
    zero = blocks.parameter(rest[0].codes.int()) if rest and x.row.kind == "int" else None
    q = QTensor(blocks.rows(x.codes), x.row, blocks.parameter(scale.wide.float()), zero, **blocks.words)
    values = blocks.undo(q.dequantize(WIDE[expected.type]))
    assert torch.equal(values.reshape(-1).view(torch.uint8), expected.raw)


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_quantize_linear(name):
    _, (x,), (y, scale, zero_point) = load(name)
    got_scale, got_zero = scale_zero_point(x.wide.min(), x.wide.max(), "uint8")
    assert torch.equal(got_scale, scale.wide)
    assert torch.equal(got_zero, zero_point.codes.int())
    assert torch.equal(quantize_with(x.wide, "uint8", got_scale, got_zero).codes, y.codes)


@pytest.mark.parametrize("name", TO_NARROW)
def test_casts_to_narrow_types(name):
    node, (x, *_), (expected,) = load(name)
    settings, row = attributes(node), expected.row
    # In ONNX only the floats of 4 and 8 bits saturate, and casts to ints drop their high bits.
    saturate = bool(settings.get("saturate", 1)) and row.kind == "float" and row.bits <= 8
    rounding = settings.get("round_mode", b"nearest").decode() if row.name == "e8m0" else "nearest"
    q = cast(x.wide, row, saturate=saturate, rounding=rounding)
    assert torch.equal(q.packed(), expected.raw)


@pytest.mark.parametrize("name", TO_WIDE)
def test_casts_from_narrow_types(name):
    _, (x, *_), (expected,) = load(name)
    if expected.type in WIDE:
        values = QTensor(x.codes, x.row).dequantize(WIDE[expected.type])
        assert torch.equal(values.reshape(-1).view(torch.uint8), expected.raw)
    else:
        assert torch.equal(pack(x.codes, expected.row), expected.raw)
