"""Bad input is one line that names the tensor and the value."""

from __future__ import annotations

import pytest
import torch

from fewbits.errors import InputError
from fewbits.numerics import (
    QTensor,
    QType,
    cast,
    find,
    pack,
    quantize,
    quantize_with,
    quantize_with_codebook,
    scale_zero_point,
)
from fewbits.numerics.qtype import FloatFormat

X = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
ONE = torch.tensor(1.0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "qtype", ["int8", "uint4", "fp8_e4m3fn", "nf4", "nvfp4", "codebook4", "binary", "ternary", "mxfp4"]
)
def test_nothing_but_finite_numbers(value, qtype):
    x = torch.randn(4, 32)
    x[2, 5] = value
    with pytest.raises(InputError, match=rf"^tensor 'layer.weight': {value} at index \(2, 5\); only finite"):
        quantize(x, qtype, channel_axis=0, name="layer.weight")
    long = torch.zeros(600_000)
    long[599_999] = value
    if qtype not in ("nvfp4", "mxfp4"):
        with pytest.raises(InputError, match=r"at index \(599999,\)"):
            quantize(long, qtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(X, "int9", name="w"), "unknown qtype 'int9'; known are int2, uint2"),
        (lambda: quantize(X, None, name="w"), "unknown qtype None"),
        (
            lambda: quantize(X, "int4", channel_axis=0, group_size=32, name="w"),
            r"group_size 32 does not divide the 30 elements of a channel \(axis 0\), shape \(4, 30\)",
        ),
        (lambda: quantize(X, "int4", group_size=0, name="w"), "group_size 0 does not divide the 120"),
        (lambda: quantize(X, "int4", group_size=2.5, name="w"), "group_size is 2.5; give an integer"),
        (lambda: quantize(X, "int4", channel_axis=2, name="w"), "channel_axis 2 is not an axis of shape"),
        (lambda: quantize(X, "mxfp4", group_size=16, name="w"), "mxfp4 has groups of 32, got group_size 16"),
        (lambda: quantize(X.int(), "int4", name="w"), "dtype torch.int32; only floating-point"),
        (lambda: quantize([1.0], "int4", name="w"), "got a list; give a torch.Tensor"),
        (lambda: quantize(X[:0], "int4", name="w"), r"shape \(0, 30\) has no elements"),
        (lambda: quantize(X.double() * 1e300, "int4", name="w"), "only finite float32 values"),
        (lambda: quantize(X, "int4", search="best", name="w"), "unknown search 'best'; known are minmax"),
        (lambda: quantize(X, "int4", search=3, name="w"), "unknown search 3"),
        (lambda: quantize(X, "nf4", search="entropy", name="w"), "takes 'minmax' or 'mse'"),
        (lambda: quantize(X, "nf4", symmetric=False, name="w"), "symmetric, qmin and qmax are of int"),
        (lambda: quantize(X, "int8", qmin=-129, name="w"), "codes from -129 to 127 are not a range within"),
        (lambda: quantize(X, "int8", qmin=-9, qmax=-3, name="w"), "need 0 inside their range, got -9 to -3"),
        (lambda: quantize(X, "e8m0", name="w"), "e8m0 holds scales"),
        (lambda: quantize_with(X, "int4", torch.ones(3), channel_axis=0, name="w"), r"shape \(3,\)"),
        (lambda: quantize_with(X, "int4", ONE * 0, name="w"), "scale is finite and positive, got 0.0"),
        (lambda: quantize_with(X * torch.nan, "int4", ONE, name="w"), r"nan at index \(0, 0\)"),
        (lambda: quantize_with(X, "int4", ONE, torch.tensor(8), name="w"), "zero point 8 is out of range"),
        (lambda: quantize_with(X, "int4", ONE, ONE / 2, name="w"), "zero points are integers"),
        (lambda: quantize_with(X, "fp8_e5m2", ONE, torch.tensor(0), name="w"), "zero_point, qmin and qmax"),
        (lambda: quantize_with(X, "binary", ONE, name="w"), "no levels known in advance"),
        (
            lambda: quantize_with_codebook(X, "codebook2", torch.arange(5.0), name="w"),
            "a codebook of 5 entries; at most 4 fit its bits",
        ),
        (
            lambda: quantize_with_codebook(X, "codebook2", torch.tensor([0.0, 1.0, 1.0]), name="w"),
            "the codebook repeats the entry 1.0",
        ),
        (
            lambda: quantize_with_codebook(X, "codebook2", torch.tensor([0.0, 2.0, 1.0]), name="w"),
            "codebook entries must ascend; 1.0 is out of order",
        ),
        (
            lambda: quantize_with_codebook(X, "codebook2", torch.tensor([0.0, torch.nan]), name="w"),
            "a codebook entry is nan, not finite",
        ),
        (lambda: quantize_with_codebook(X, "codebook2", torch.zeros(2, 3), name="w"), "axis of entries"),
        (lambda: quantize_with_codebook(X, "nf4", torch.arange(2.0), name="w"), "learned codebook row"),
        (lambda: cast(X * torch.nan, "int4", name="w"), r"nan at index \(0, 0\)"),
        (lambda: cast(X, "nf4", name="w"), "no numbers without a scale"),
        (lambda: cast(X, "fp16", rounding="odd", name="w"), "unknown rounding 'odd'; known are nearest"),
        (
            lambda: QTensor(torch.full((2,), 9, dtype=torch.int8), find("int4"), ONE, name="w"),
            "code 9 is out of range; int4 goes from -8 to 7",
        ),
    ],
)
def test_one_line_names_the_tensor_and_the_value(call, message):
    with pytest.raises(InputError, match=f"^tensor 'w': .*{message}") as raised:
        call()
    assert "\n" not in str(raised.value)
    assert str(raised.value).count("tensor 'w'") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize(X, "int4", group_size=7), "the tensor: group_size 7 does not divide"),
        (lambda: pack(torch.tensor([3, -9]), "int4"), "code -9 is out of range; int4 goes from -8 to 7"),
        (lambda: pack(X, "int4"), "codes are integers, got torch.float32"),
        (lambda: scale_zero_point(ONE, ONE * 0, "int8"), "a range needs finite ends, the lower first"),
        (lambda: QType("t", "int", 3, 0, 8), "'t': codes from 0 to 8 do not fit 3 bits"),
        (lambda: QType("t", "int", 0, 0, 1), "'t': bits is 0; codes have 1 to 16 bits"),
        (lambda: QType("t", "int", 4, 7, 7), "'t': qmin 7 is not below qmax 7"),
        (lambda: QType("t", "round", 3, 0, 1), "'t': kind 'round'; known are int"),
        (lambda: QType("t", "float", 8, 0, 255), "kind 'float' and float_format go together"),
        (lambda: QType("t", "codebook", 2, 0, 2, levels=(0.0, 0.5, 0.5)), "repeats the entry 0.5"),
        (lambda: QType("t", "codebook", 2, 0, 2, levels=(0.0, 0.5, 0.2)), "0.5 is before 0.2"),
        (lambda: QType("t", "codebook", 2, 0, 4, levels=(0.0, 0.1, 0.2, 0.3, 0.4)), "do not fit 2 bits"),
        (lambda: FloatFormat(4, 3, 7, "odd"), "specials 'odd'; known are ieee"),
        (lambda: FloatFormat(9, 3, 7, "ieee"), "9 exponent and 3 mantissa bits"),
        (lambda: FloatFormat(4, 0, 7, "ieee"), "needs a mantissa bit"),
    ],
)
def test_one_line_names_the_value(call, message):
    with pytest.raises(InputError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
