"""Narrow floats against ml_dtypes, over every 16-bit pattern, and the saturating rule beside it."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from fewbits.errors import InputError
from fewbits.numerics import QType, cast, find, quantize, quantize_with, register
from fewbits.numerics.bits import bits_of
from fewbits.numerics.floats import decode_float, decode_scale, encode_float, encode_scale, stored_scale
from fewbits.numerics.qtype import float_row

register(float_row("fp6_e2m3", 2, 3, 1, "none"))
register(float_row("fp6_e3m2", 3, 2, 3, "none"))
register(float_row("fp8_e3m4", 3, 4, 3, "ieee"))

PEERS = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "fp8_e3m4": ml_dtypes.float8_e3m4,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
}
HAS_NAN = [name for name in PEERS if find(name).float_format.specials != "none"]


def every_pattern(source: str) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(PEERS[source])


def peer_codes(values: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(all="ignore"):
        narrow = values.astype(dtype)
    return narrow.view(np.uint16 if narrow.dtype.itemsize == 2 else np.uint8)


def our_codes(source: str, name: str, *, saturate: bool) -> np.ndarray:
    """The codes of every pattern, from 16 bits one by one and from float32 by table: they must agree."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.float16 if source == "fp16" else torch.bfloat16)
    one_by_one = encode_float(values, find(name), saturate=saturate)
    twice = encode_float(values.float().repeat(2), find(name), saturate=saturate)
    assert torch.equal(twice.view(2, -1), torch.stack([one_by_one, one_by_one]))
    return one_by_one.numpy()


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("source", ["fp16", "bf16"])
def test_the_formats_own_rule_is_that_of_ml_dtypes(name, source):
    """Every pattern, bit by bit, the NaNs too; only a NaN of the same format keeps its payload over there."""
    values = every_pattern(source)
    expected, got = peer_codes(values, PEERS[name]), our_codes(source, name, saturate=False)
    if name == source:
        nan = np.isnan(values.astype(np.float32))
        assert np.isnan(decode_float(torch.from_numpy(got[nan]), find(name)).numpy()).all()
        got, expected = got[~nan], expected[~nan]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("source", ["fp16", "bf16"])
def test_saturation_is_clamping_first(name, source):
    """Saturating is the format's rule on values clamped to its largest; NaN stays NaN."""
    values = every_pattern(source)
    wide = values.astype(np.float32)
    top = find(name).float_format.max_value
    assert top == float(ml_dtypes.finfo(PEERS[name]).max)
    nan = np.isnan(wide)
    expected = peer_codes(np.clip(wide, -top, top), PEERS[name])
    got = our_codes(source, name, saturate=True)
    np.testing.assert_array_equal(got[~nan], expected[~nan])
    if name in HAS_NAN:
        assert np.isnan(decode_float(torch.from_numpy(got[nan]), find(name)).numpy()).all()


@pytest.mark.parametrize("source", ["fp16", "bf16"])
@pytest.mark.parametrize("saturate", [True, False])
def test_every_pattern_as_e8m0(source, saturate):
    """As ml_dtypes, but for three rules: zero is the smallest power, the smallest ones round to nearest too
    (ml_dtypes takes what is just above 2 ** -127 up), and what is too large may saturate."""
    with np.errstate(all="ignore"):
        wide = every_pattern(source).astype(np.float64)
    expected = peer_codes(every_pattern(source), ml_dtypes.float8_e8m0fnu)
    expected[wide == 0] = 0
    expected[(wide > 0) & (wide < 1.5 * 2.0**-127)] = 0
    if saturate:
        expected[wide >= 1.5 * 2.0**127] = 254
    np.testing.assert_array_equal(our_codes(source, "e8m0", saturate=saturate), expected)


@pytest.mark.parametrize("name", [*PEERS, "e8m0"])
def test_every_code_decodes_as_in_ml_dtypes(name):
    """Bit by bit; a 16-bit NaN is the quiet one here, and keeps its payload over there."""
    row = find(name)
    codes = np.arange(1 << row.bits, dtype=np.uint16 if row.bits == 16 else np.uint8)
    expected = codes.view(PEERS.get(name, ml_dtypes.float8_e8m0fnu)).astype(np.float32)
    got = decode_float(torch.from_numpy(codes), row).numpy()
    np.testing.assert_array_equal(got, expected)
    kept = ~np.isnan(expected) if row.bits == 16 else slice(None)
    np.testing.assert_array_equal(got.view(np.uint32)[kept], expected.view(np.uint32)[kept])


@pytest.mark.parametrize("name", PEERS)
def test_decoding_and_encoding_is_the_identity(name):
    row = find(name)
    codes = torch.arange(1 << row.bits).to(row.code_dtype)
    values = decode_float(codes, row)
    number = ~values.isnan()
    assert torch.equal(encode_float(values, row, saturate=False)[number], codes[number])


@pytest.mark.parametrize("name", PEERS)
def test_float64_is_rounded_once(name):
    """Halfway cases that a detour over float32 would round twice."""
    row = find(name)
    grid = decode_float(torch.arange(1 << (row.bits - 1)).to(row.code_dtype), row).double()
    grid = grid[torch.isfinite(grid)]
    halfway = (grid[1:] + grid[:-1]) / 2
    up = torch.nextafter(halfway, torch.full_like(halfway, torch.inf))
    assert torch.equal(decode_float(encode_float(up, row, saturate=True), row).double(), grid[1:])


@pytest.mark.parametrize("name", [name for name in PEERS if find(name).bits <= 8])
@pytest.mark.parametrize("saturate", [True, False])
def test_many_values_give_what_few_give(name, saturate):
    """Random float32 patterns and the neighbours of every halfway point, in one call and in small ones."""
    row = find(name)
    bits = torch.randint(
        -(2**31), 2**31, (1 << 17,), generator=torch.Generator().manual_seed(0), dtype=torch.int64
    )
    grid = decode_float(torch.arange(1 << row.bits).to(row.code_dtype), row)
    grid = grid[torch.isfinite(grid)].sort().values
    halfway = (grid[1:] + grid[:-1]) / 2
    close = [torch.nextafter(halfway, torch.full_like(halfway, end)) for end in (torch.inf, -torch.inf)]
    values = torch.cat(
        [bits.int().view(torch.float32), halfway, *close, torch.tensor([1e-45, -1e-45, 0.0, -0.0])]
    )
    many = encode_float(values, row, saturate=saturate)
    few = torch.cat([encode_float(part, row, saturate=saturate) for part in values.split(1 << 15)])
    assert torch.equal(many, few)


def test_e8m0():
    row = find("e8m0")
    values = 2.0 ** torch.arange(-127, 128, dtype=torch.float64)
    assert encode_float(values, row, saturate=True).tolist() == list(range(255))
    assert torch.equal(decode_float(torch.arange(255), row).double(), values)
    assert decode_float(torch.tensor(255), row).isnan()
    expected = (
        np.array([0.3, 1.1, 1.4, 1.6, 3.5, 100.0], np.float32).astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    )
    assert (
        encode_float(torch.tensor([0.3, 1.1, 1.4, 1.6, 3.5, 100.0]), row, saturate=True).tolist()
        == expected.tolist()
    )
    rounded = {
        r: encode_float(torch.tensor([1.1, 1.9, 2.0]), row, saturate=True, rounding=r).tolist()
        for r in ("up", "down")
    }
    assert rounded == {"up": [128, 128, 128], "down": [127, 127, 128]}
    assert encode_float(torch.tensor([-1.0, torch.nan, 0.0]), row, saturate=True).tolist() == [255, 255, 0]


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e5m2", "fp4_e2m1", "fp6_e3m2", "nf4", "log4"])
@pytest.mark.parametrize("search", ["minmax", "mse"])
def test_scaled_levels_round_to_the_nearest(name, search):
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    q = quantize(x, name, channel_axis=0, search=search)
    row = find(name)
    if row.levels is None:
        grid = decode_float(torch.arange(1 << row.bits), row)
        grid = grid[torch.isfinite(grid)]
    else:
        grid = torch.tensor(row.levels)
    error = ((x / q.scale[:, None]).unsqueeze(-1) - grid).abs().amin(-1) * q.scale[:, None]
    assert torch.allclose((q.dequantize() - x).abs(), error, atol=1e-6)
    assert torch.equal(quantize_with(x, name, q.scale, channel_axis=0).codes, q.codes)


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp4_e2m1", "nf4", "mxfp4", "nvfp4", "log3"])
def test_least_error_is_no_worse_than_the_whole_range(name):
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) ** 3
    whole, least = (quantize(x, name, channel_axis=0, search=s).error(x).mse for s in ("minmax", "mse"))
    assert least < whole


def test_mx_blocks_by_the_specification():
    """The shared exponent is that of the largest value less that of the largest element."""
    x = torch.zeros(64)
    x[:32] = torch.linspace(-7.9, 7.9, 32)
    x[32:] = torch.linspace(-0.0625, 0.0625, 32)
    q = quantize(x, "mxfp4")
    assert q.group_size == 32
    assert q.scale.tolist() == [1.0, 2.0**-6]
    assert q.dequantize()[0] == -6
    assert q.dequantize()[31] == 6
    assert q.nbytes == 64 // 2 + 2
    expected = (x[32:] * 64).numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    assert q.codes[32:].tolist() == expected.tolist()
    assert quantize(x, "mxfp8_e4m3").scale.tolist() == [2.0**-6, 2.0**-12]


def test_nvfp4_scales_are_e4m3_times_one():
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    q = quantize(x, "nvfp4", channel_axis=0)
    assert q.scale.shape == (8, 4)
    assert float(q.tensor_scale) == pytest.approx(float(x.abs().max()) / (6 * 448))
    stored = (q.scale / q.tensor_scale).numpy()
    on_grid = stored.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(on_grid * q.tensor_scale.numpy(), q.scale.numpy())
    assert q.nbytes == 8 * 64 // 2 + 32 + 4
    assert q.error(x).sqnr_db > 19


def test_cast_keeps_the_numbers():
    x = torch.tensor([1.0, 1e6, -1e6, torch.nan, torch.inf, 3.14159])
    assert cast(x, "fp8_e4m3fn").dequantize().nan_to_num(nan=7.0).tolist() == [1, 448, -448, 7, 448, 3.25]
    plain = cast(x, "fp8_e5m2", saturate=False)
    assert plain.dequantize().nan_to_num(nan=7.0, posinf=9, neginf=-9).tolist() == [1, 9, -9, 7, 9, 3]
    assert plain.scale is None
    assert plain.nbytes == 6
    assert cast(torch.tensor([-9.7, 3.9, 200.0]), "int4").codes.tolist() == [-8, 3, 7]
    assert cast(torch.tensor([-9.7, 3.9, 200.0]), "int4", saturate=False).codes.tolist() == [7, 3, -8]
    with pytest.raises(InputError, match="nan at index"):
        cast(x, "int4")
    with pytest.raises(InputError, match="no numbers without a scale"):
        cast(x, "nf4")


def test_bits_of_e_and_a_third():
    e = {r.qtype: r for r in bits_of(2.718281828459045)}
    assert (e["fp32"].sign, e["fp32"].exponent, e["fp32"].mantissa) == (
        "0",
        "10000000",
        "01011011111100001010100",
    )
    assert (e["bf16"].exponent, e["bf16"].mantissa, e["bf16"].value) == ("10000000", "0101110", 2.71875)
    assert (e["fp16"].exponent, e["fp16"].mantissa) == ("10000", "0101110000")
    assert e["fp8_e4m3fn"].value == 2.75
    assert e["fp8_e5m2"].value == 2.5
    assert e["fp4_e2m1"].value == 3.0
    third = {r.qtype: r for r in bits_of(-1 / 3)}
    assert third["fp16"].value == -0.333251953125
    assert third["fp16"].error == -0.333251953125 + 1 / 3
    assert third["fp8_e4m3fn"].sign == "1"
    assert bits_of(1e6)[1].value == float("inf")
    assert bits_of(1e6, saturate=True)[1].value == 65504


def test_rows_a_user_registers():
    x = torch.randn(4, 30)
    assert quantize(x, "fp6_e2m3", channel_axis=0).error(x).sqnr_db > 25
    int5 = register(QType("my_int5", "int", 5, -16, 15))
    q = quantize(x, "my_int5", channel_axis=0, group_size=10)
    assert torch.equal(q.codes, quantize(x, "int5", channel_axis=0, group_size=10).codes)
    assert register(int5) is int5
    with pytest.raises(InputError, match="already registered"):
        register(QType("my_int5", "int", 5, 0, 31))
    register(QType("int4_fp16_scale", "int", 4, -8, 7, scale_type="fp16"))
    q = quantize(x, "int4_fp16_scale", channel_axis=0)
    assert torch.equal(q.scale, q.scale.half().float())
    assert q.nbytes == 60 + 4 * 2


@pytest.mark.parametrize("scale_type", ["fp16", "bf16"])
def test_scales_that_torch_rounds_are_those_of_the_patterns(scale_type):
    row = replace(find("int4"), name=f"int4_{scale_type}_scales", scale_type=scale_type)
    bits = torch.cat([torch.arange(0, 0x7F800000, 4999, dtype=torch.int32), torch.tensor([1, 0x7F7FFFFF])])
    scales = bits.int().view(torch.float32)
    assert torch.equal(stored_scale(scales, row), decode_scale(encode_scale(scales, row, None), row, None))
