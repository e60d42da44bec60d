"""QTensor: what it holds, and the invariants it checks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fewbits.errors import InputError
from fewbits.numerics import QTensor, find, quantize, quantize_with

X = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))


def test_error_by_hand():
    x = torch.tensor([1.0, 2.0, -4.0])
    q = quantize_with(x, "int8", torch.tensor(3.0))
    error = q.error(x)
    assert q.dequantize().tolist() == [0.0, 3.0, -3.0]
    assert error.mean == 1.0
    assert error.max == 1.0
    assert error.mse == 1.0
    assert error.sqnr_db == pytest.approx(10 * math.log10(21 / 3))
    assert quantize(torch.ones(4), "int8").error(torch.ones(4)).sqnr_db == math.inf
    with pytest.raises(InputError, match=r"its shape is \(3,\); compared with \(2,\)"):
        q.error(x[:2])


@pytest.mark.parametrize(
    ("qtype", "words", "expected"),
    [
        ("int8", {}, 192 + 4),
        ("int4", {"channel_axis": 0, "group_size": 16}, 96 + 12 * 4),
        ("uint4", {"channel_axis": 0}, 96 + 6 * 4 + 3),
        ("int3", {"channel_axis": 1}, 72 + 32 * 4),
        ("codebook4", {}, 96 + 16 * 4),
        ("codebook2", {"channel_axis": 0}, 48 + 6 * 4 * 4),
        ("nf4", {"group_size": 64}, 96 + 3 * 4),
        ("binary", {"channel_axis": 0}, 24 + 6 * 4),
        ("mxfp4", {"channel_axis": 0}, 96 + 6),
    ],
)
def test_nbytes_are_the_packed_codes_and_parameters(qtype, words, expected):
    q = quantize(X, qtype, **words)
    assert q.nbytes == expected
    assert q.packed().numel() == -(-X.numel() * q.qtype.bits // 8)


def test_dequantize_in_another_dtype():
    q = quantize(X, "int8", channel_axis=0)
    assert torch.equal(q.dequantize(torch.float16), q.dequantize().half())
    assert q.dequantize(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"codes": torch.full((2, 2), 9, dtype=torch.int8)},
            "tensor 'w': code 9 is out of range; int4 goes from -8 to 7",
        ),
        ({"codes": torch.full((2, 2), -9, dtype=torch.int8)}, "code -9 is out of range"),
        ({"codes": torch.zeros(2, 2)}, "int4 needs codes of torch.int8, got torch.float32"),
        ({"scale": torch.ones(3)}, r"scale has shape \(3,\), the layout needs \(2,\)"),
        ({"scale": torch.tensor([1.0, 0.0])}, "finite and positive, got 0.0"),
        ({"scale": torch.tensor([1.0, torch.inf])}, "finite and positive, got inf"),
        ({"scale": None}, "needs a scale"),
        ({"zero_point": torch.tensor([0, 8], dtype=torch.int32)}, "zero point 8 is out of range"),
        ({"scale": torch.ones(2, dtype=torch.float64)}, "needs scale of torch.float32, got torch.float64"),
        ({"zero_point": torch.tensor([0.5, 1.0])}, "needs zero_point of torch.int32, got torch.float32"),
        ({"free_zero_point": torch.tensor([0.0, torch.nan])}, "free zero point is finite, got nan"),
        (
            {"zero_point": torch.zeros(2, dtype=torch.int32), "free_zero_point": torch.zeros(2)},
            "a zero_point or a free_zero_point, not both",
        ),
        ({"tensor_scale": torch.tensor(1.0)}, "int4 has no tensor_scale"),
        ({"codebook": torch.ones(2, 3)}, "has no codebook"),
        (
            {"qtype": replace(find("int4"), scale_type="e8m0"), "scale": torch.tensor([1.0, 3.0])},
            "scale 3.0 is not a number of e8m0",
        ),
        ({"qtype": find("codebook4"), "codes": torch.zeros(2, 2, dtype=torch.uint8)}, "needs a codebook"),
        ({"group_size": 3}, "group_size 3 does not divide the 2 elements of a channel"),
        ({"channel_axis": 2}, "channel_axis 2 is not an axis"),
    ],
)
def test_parts_that_disagree(parts, message):
    q = QTensor(torch.zeros(2, 2, dtype=torch.int8), find("int4"), torch.ones(2), channel_axis=0, name="w")
    with pytest.raises(InputError, match=message):
        replace(q, **parts)


def test_codes_out_of_a_codebook():
    q = quantize(X, "codebook3")
    with pytest.raises(InputError, match="code 7 is out of range; codebook3 goes from 0 to 5"):
        replace(q, codebook=q.codebook[:6])


@pytest.mark.parametrize(
    ("qtype", "parts", "message"),
    [
        ("nf4", {"zero_point": torch.tensor(0, dtype=torch.int32)}, "zero points are of scaled int"),
        ("codebook2", {"scale": torch.tensor(1.0)}, "the entries of a codebook2 codebook are values"),
        ("codebook2", {"codebook": torch.zeros(4, 4)}, "axis of entries"),
        ("binary", {"codes": torch.zeros(6, 32, dtype=torch.int8)}, r"binary codes are -1 and \+1, got 0"),
        (
            "mxfp4",
            {"group_size": None, "scale": torch.tensor(1.0)},
            "mxfp4 has groups of 32, got group_size None",
        ),
        ("nvfp4", {"tensor_scale": None}, "nvfp4 needs a tensor_scale"),
        ("nvfp4", {"tensor_scale": torch.tensor(torch.inf)}, "tensor_scale is finite and positive, got inf"),
        ("nvfp4", {"tensor_scale": torch.ones(1)}, r"tensor_scale has shape \(1,\), the layout needs \(\)"),
    ],
)
def test_parts_that_a_kind_of_row_has_not(qtype, parts, message):
    with pytest.raises(InputError, match=f"tensor 'w': .*{message}"):
        replace(quantize(X, qtype, name="w"), **parts)
