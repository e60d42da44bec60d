"""Bytes: there and back for every row and odd shape, and the same bytes as onnx and gguf write."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize
from gguf import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fewbits.errors import InputError
from fewbits.numerics import (
    QTensor,
    QType,
    find,
    pack,
    packed_size,
    quantize,
    quantize_with,
    register,
    table,
    unpack,
)

register(QType("int11", "int", 11, -1024, 1023))
register(QType("uint13", "int", 13, 0, 8191))
ROWS = [row.name for row in table()]


def random_codes(row, shape, seed) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if row.kind == "binary":
        return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(row.code_dtype)
    return torch.randint(row.qmin, row.qmax + 1, shape, generator=generator).to(row.code_dtype)


@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=200, deadline=None)
@given(shape=st.lists(st.integers(1, 7), max_size=4), seed=st.integers(0, 1000))
def test_there_and_back(name, shape, seed):
    row = find(name)
    codes = random_codes(row, tuple(shape), seed)
    packed = pack(codes, name)
    assert packed.numel() == packed_size(codes.numel(), row.bits) == -(-codes.numel() * row.bits // 8)
    back = unpack(packed, name, tuple(shape))
    assert back.dtype == codes.dtype
    assert torch.equal(back, codes)


@pytest.mark.parametrize("name", ["int3", "uint4", "int5", "binary", "uint7", "int8", "uint16"])
@pytest.mark.parametrize("count", [1 << 18, (1 << 18) + 1, 3 * (1 << 18) + 5])
def test_there_and_back_over_blocks(name, count):
    codes = random_codes(find(name), (count,), 0)
    assert torch.equal(unpack(pack(codes, name), name, (count,)), codes)


@pytest.mark.parametrize("name", ROWS)
def test_the_stream_is_little_endian(name):
    """Bit by bit from the definition, in numpy."""
    row = find(name)
    codes = random_codes(row, (37,), 3)
    fields = ((codes.int() > 0).int() if row.kind == "binary" else codes.int()).numpy() & (
        (1 << row.bits) - 1
    )
    bits = (fields[:, None] >> np.arange(row.bits)) & 1
    expected = np.packbits(bits.reshape(-1).astype(np.uint8), bitorder="little")
    np.testing.assert_array_equal(pack(codes, name).numpy(), expected)


@pytest.mark.parametrize(
    ("name", "onnx_type", "dtype"),
    [
        ("int4", TensorProto.INT4, ml_dtypes.int4),
        ("uint4", TensorProto.UINT4, ml_dtypes.uint4),
        ("int2", TensorProto.INT2, ml_dtypes.int2),
        ("uint2", TensorProto.UINT2, ml_dtypes.uint2),
        ("fp4_e2m1", TensorProto.FLOAT4E2M1, ml_dtypes.float4_e2m1fn),
        ("int16", TensorProto.INT16, np.int16),
        ("uint16", TensorProto.UINT16, np.uint16),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 33])
def test_the_bytes_are_those_of_onnx(name, onnx_type, dtype, count):
    codes = random_codes(find(name), (count,), 1)
    values = codes.numpy().view(dtype) if name == "fp4_e2m1" else codes.numpy().astype(dtype)
    proto = helper.make_tensor("codes", onnx_type, [count], values)
    width = np.uint16 if find(name).bits == 16 else np.uint8
    expected = proto.raw_data or np.array(proto.int32_data, width).tobytes()
    assert pack(codes, name).numpy().tobytes() == expected


def test_the_blocks_are_those_of_gguf_q8_0():
    """32 int8 codes after their float16 step."""
    x = np.random.default_rng(0).standard_normal((8, 256), np.float32)
    blocks = gguf_quantize(x, GGMLQuantizationType.Q8_0).reshape(-1, 34)
    scale = x.reshape(-1, 32).__abs__().max(axis=1) / 127
    q = quantize_with(torch.from_numpy(x), "int8", torch.from_numpy(scale), group_size=32)
    # gguf rounds halves away from zero and divides by multiplying; no value here is that close to a half.
    ours = pack(q.codes, "int8").numpy().reshape(-1, 32)
    np.testing.assert_array_equal(ours, blocks[:, 2:])
    np.testing.assert_array_equal(scale.astype(np.float16).view(np.uint8).reshape(-1, 2), blocks[:, :2])


def test_the_blocks_are_those_of_gguf_q4_0():
    """32 codes around 8 in 16 bytes: elements i and i + 16 are the low and high nibble of byte i."""
    x = np.random.default_rng(1).standard_normal((8, 256), np.float32)
    raw = gguf_quantize(x, GGMLQuantizationType.Q4_0)
    blocks = raw.reshape(-1, 18)
    rows = x.reshape(-1, 32)
    extreme = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    step = (extreme / -8)[:, 0]
    # Its step has the sign of the extreme value; ours are positive, so such rows are negated around 8.
    sign = np.sign(step)[:, None]
    q = quantize_with(
        torch.from_numpy(rows * sign),
        "uint4",
        torch.from_numpy(np.abs(step)),
        torch.full((64,), 8),
        channel_axis=0,
    )
    halves = q.codes.reshape(-1, 2, 16).transpose(1, 2)
    packed = pack(halves, "uint4").numpy().reshape(-1, 16)
    np.testing.assert_array_equal(packed, blocks[:, 2:])
    np.testing.assert_array_equal(step.astype(np.float16).view(np.uint8).reshape(-1, 2), blocks[:, :2])
    # And read back: gguf's own decoder gives what ours gives with the float16 step.
    halved = QTensor(
        q.codes,
        q.qtype,
        torch.from_numpy(np.abs(step).astype(np.float16).astype(np.float32)),
        q.zero_point,
        channel_axis=0,
    )
    np.testing.assert_array_equal(
        halved.dequantize().numpy() * sign, dequantize(raw, GGMLQuantizationType.Q4_0).reshape(-1, 32)
    )


def test_wrong_sizes():
    with pytest.raises(InputError, match="5 int4 codes are 3 bytes"):
        unpack(torch.zeros(2, dtype=torch.uint8), "int4", (5,))
    with pytest.raises(InputError, match="int32"):
        unpack(torch.zeros(3, dtype=torch.int32), "int4", (5,))


def test_rows_of_unusual_widths_quantize_too():
    x = torch.randn(5, 7)
    q = quantize(x, "uint13", channel_axis=0)
    assert q.codes.dtype == torch.uint16
    assert q.error(x).sqnr_db > 70
    assert torch.equal(unpack(q.packed(), "uint13", (5, 7)), q.codes)
    with pytest.raises(InputError, match="code 8192 is out of range"):
        QTensor(torch.full((2,), 8192).to(torch.uint16), find("uint13"), torch.tensor(1.0))
