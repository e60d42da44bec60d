"""QTensor: what it holds, what it refuses, and its way through a file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewbits.errors import InputError
from fewbits.numerics import QTensor, QType, cast, find, load, quantize, quantize_with, register, save, table

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
    with pytest.raises(InputError, match=r"has shape \(3,\); compared with \(2,\)"):
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


def test_every_row_goes_through_a_file(tmp_path):
    rows = [row for row in table() if row.name != "e8m0"]
    tensors = {
        f"{row.name}.{axis}": quantize(X, row, channel_axis=axis)
        for row in rows
        for axis in (None, 0, 1)
        if not row.group_size or axis == 0
    }
    tensors["free"] = quantize(X, "uint4", group_size=64, search="least_squares")
    tensors["zero"] = quantize(X, "uint16", channel_axis=0, group_size=8)
    tensors["cast"] = cast(X, "fp8_e5m2")
    save(tmp_path / "q.safetensors", tensors)
    loaded = load(tmp_path / "q.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, q in tensors.items():
        back = loaded[name]
        assert torch.equal(back.codes, q.codes), name
        assert back.codes.dtype == q.codes.dtype
        assert torch.equal(back.dequantize(), q.dequantize()), name
        assert (back.qtype, back.channel_axis, back.group_size, back.nbytes) == (
            q.qtype,
            q.channel_axis,
            q.group_size,
            q.nbytes,
        )
        assert back.name == name
    stored = load_file(tmp_path / "q.safetensors")
    assert sum(t.numel() * t.element_size() for t in stored.values()) == sum(
        q.nbytes for q in tensors.values()
    )


class TestFilesWhosePartsDisagree:
    def write(self, path, changed: dict, metadata=None) -> None:
        save(path, {"w": quantize(X, "uint4", channel_axis=0)})
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            kept = metadata or file.metadata()
        tensors = {**load_file(path), **changed}
        save_file({k: v for k, v in tensors.items() if v is not None}, path, kept)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"w.codes": torch.zeros(5, dtype=torch.uint8)}, "tensor 'w': 192 uint4 codes are 96 bytes"),
            ({"w.codes": None}, "tensor 'w' lacks 'w.codes'"),
            ({"w.scale": torch.ones(5)}, r"scale has shape \(5,\), the layout needs \(6,\)"),
            (
                {"w.scale": torch.tensor([1, 1, 1, 1, 1, float("nan")])},
                "scale is finite and positive, got nan",
            ),
            ({"w.scale": None}, "needs a scale"),
            ({"w.zero_point": torch.zeros(7, dtype=torch.uint8)}, "6 uint4 codes are 3 bytes"),
            ({"w.codebook": torch.zeros(4)}, "has no codebook"),
        ],
    )
    def test_one_clear_error(self, tmp_path, changed, message):
        self.write(tmp_path / "bad.safetensors", changed)
        with pytest.raises(InputError, match=message) as raised:
            load(tmp_path / "bad.safetensors")
        assert "\n" not in str(raised.value)
        assert "bad.safetensors" in str(raised.value)

    def test_another_kind_of_file(self, tmp_path):
        save_file({"w": X}, tmp_path / "plain.safetensors")
        with pytest.raises(InputError, match="not a file of QTensors"):
            load(tmp_path / "plain.safetensors")
        (tmp_path / "junk").write_bytes(b"hello")
        with pytest.raises(InputError, match="not a file of QTensors"):
            load(tmp_path / "junk")
        with pytest.raises(InputError, match="not a file of QTensors"):
            load(tmp_path / "missing")

    def test_a_row_that_means_something_else_here(self, tmp_path, monkeypatch):
        register(QType("house", "int", 4, -8, 7))
        save(tmp_path / "f", {"w": quantize(X, "house")})
        monkeypatch.setitem(
            __import__("fewbits.numerics.qtype", fromlist=["_"])._TABLE,
            "house",
            QType("house", "int", 4, -7, 7),
        )
        with pytest.raises(InputError, match="'house' was another format"):
            load(tmp_path / "f")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"codes": torch.full((2, 2), 9, dtype=torch.int8)},
            "tensor 'w': code 9 is out of range; int4 goes from -8 to 7",
        ),
        ({"codes": torch.full((2, 2), -9, dtype=torch.int8)}, "code -9 is out of range"),
        ({"codes": torch.zeros(2, 2)}, "int4 codes are torch.int8, got torch.float32"),
        ({"scale": torch.ones(3)}, r"scale has shape \(3,\), the layout needs \(2,\)"),
        ({"scale": torch.tensor([1.0, 0.0])}, "finite and positive, got 0.0"),
        ({"scale": torch.tensor([1.0, torch.inf])}, "finite and positive, got inf"),
        ({"scale": None}, "needs a scale"),
        ({"zero_point": torch.tensor([0, 8], dtype=torch.int32)}, "zero point 8 is out of range"),
        ({"zero_point": torch.tensor([0.5, 1.0])}, "zero points are integers"),
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


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "qtype", ["int8", "uint4", "fp8_e4m3fn", "nf4", "nvfp4", "codebook4", "binary", "ternary", "mxfp4"]
)
def test_nothing_but_finite_numbers(value, qtype):
    x = torch.randn(4, 32)
    x[2, 5] = value
    with pytest.raises(InputError, match=rf"tensor 'layer.weight' holds {value} at index \(2, 5\)"):
        quantize(x, qtype, channel_axis=0, name="layer.weight")
    long = torch.zeros(300_000)
    long[299_999] = value
    if qtype not in ("nvfp4", "mxfp4"):
        with pytest.raises(InputError, match=r"at index \(299999,\)"):
            quantize(long, qtype)


def test_bad_input_is_one_clear_line():
    x = torch.randn(4, 30)
    for call, message in [
        (lambda: quantize(x, "int9"), "unknown qtype 'int9'; known are int2, uint2"),
        (
            lambda: quantize(x, "int4", channel_axis=0, group_size=32, name="w"),
            "tensor 'w': group_size 32 does not divide the 30 elements of a channel",
        ),
        (lambda: quantize(x, "int4", group_size=0), "group_size 0 does not divide"),
        (lambda: quantize(x, "int4", channel_axis=2), "channel_axis 2 is not an axis of shape"),
        (lambda: quantize(x.int(), "int4", name="w"), "tensor 'w' has dtype torch.int32"),
        (lambda: quantize([1.0], "int4", name="w"), "tensor 'w' is a list; give a torch.Tensor"),
        (lambda: quantize(x[:0], "int4", name="w"), "no elements"),
        (lambda: quantize(x.double() * 1e300, "int4"), "only finite float32 values"),
        (lambda: quantize(x, "mxfp4", group_size=16), "mxfp4 has groups of 32, got group_size 16"),
        (lambda: quantize(x, "nf4", symmetric=False), "symmetric, qmin and qmax are of int"),
        (lambda: quantize(x, "e8m0"), "holds scales"),
        (lambda: quantize_with(x, "int4", torch.ones(3), channel_axis=0), r"scale has shape \(3,\)"),
        (lambda: quantize_with(x, "int4", torch.tensor(0.0)), "finite and positive, got 0.0"),
        (lambda: quantize_with(x * torch.nan, "int4", torch.tensor(1.0), name="w"), "tensor 'w' holds nan"),
        (
            lambda: quantize_with(x, "fp8_e5m2", torch.tensor(1.0), torch.tensor(0)),
            "zero_point, qmin and qmax",
        ),
        (lambda: quantize_with(x, "binary", torch.tensor(1.0)), "no levels known in advance"),
        (lambda: QType("t", "int", 3, 0, 8), "do not fit 3 bits"),
        (lambda: QType("t", "int", 0, 0, 1), "1 to 16 bits"),
        (lambda: QType("t", "round", 3, 0, 1), "kind 'round'"),
    ]:
        with pytest.raises(InputError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
