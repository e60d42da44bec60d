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


@lru_cache
def cases() -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    # The expanded twins are other graphs for the same numbers.
    return {case.name: case for case in found if not case.name.endswith("_expanded")}


def names(*starts: str) -> list[str]:
    return sorted(name for name in cases() if name.startswith(starts))


QUANTIZE = names("test_quantizelinear")
DEQUANTIZE = names("test_dequantizelinear")
DYNAMIC = names("test_dynamicquantizelinear")


CASTS = names("test_cast_", "test_castlike_")
NARROW = (
    *("FLOAT16", "BFLOAT16", "INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1"),
    *(f"FLOAT8{name}" for name in ("E4M3FN", "E4M3FNUZ", "E5M2", "E5M2FNUZ", "E8M0")),
)


def ends_of(name: str) -> tuple[str, str]:
    source, target = name.split("_to_")
    return source.split("_")[-1], target


def is_widening(name: str) -> bool:
    source, target = ends_of(name)
    return source in NARROW and (source != "FLOAT16" or target in ("FLOAT", "DOUBLE"))


TO_WIDE = [name for name in CASTS if is_widening(name)]
TO_NARROW = [name for name in CASTS if name not in TO_WIDE and ends_of(name)[1] in NARROW]


def test_none_is_left_out():
    assert {ends_of(n) for n in set(CASTS) - set(TO_WIDE) - set(TO_NARROW)} == {
        ("FLOAT", "DOUBLE"),
        ("DOUBLE", "FLOAT"),
    }
    assert len(QUANTIZE) >= 13
    assert len(DEQUANTIZE) >= 14
    assert len(DYNAMIC) == 3
    assert len(TO_NARROW + TO_WIDE) >= 110


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
        return self.rows(value).reshape(layout_of(tuple(rows.shape), **self.words, name="x").parameter_shape)

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
    got, wanted = q.codes, expected.codes
    if row.bits == 16:
        # Any NaN is right: their payloads are nobody's rule.
        values, expected_values = q.dequantize(), expected.wide.float()
        assert torch.equal(values.isnan(), expected_values.isnan())
        got, wanted = got[~values.isnan()], wanted[~values.isnan()]
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", TO_WIDE)
def test_casts_from_narrow_types(name):
    _, (x, *_), (expected,) = load(name)
    if expected.type in WIDE:
        got = QTensor(x.codes, x.row).dequantize(WIDE[expected.type])
        wanted = expected.wide
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.nan_to_num(nan=1.0), wanted.nan_to_num(nan=1.0))
    else:
        assert torch.equal(x.codes.to(expected.row.code_dtype), expected.codes)
