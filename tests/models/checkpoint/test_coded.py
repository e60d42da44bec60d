"""Weights in fewbits' own format: every row of the table, slice by slice, as the numerics' own files have them."""

import pytest
import torch
from safetensors.torch import save_file

from fewbits.models.checkpoint.coded import Coded
from fewbits.models.checkpoint.stored import DTYPES, as_bytes
from fewbits.modules.files import is_module_file, metadata_of
from fewbits.numerics import find, quantize
from fewbits.planning.model_info import WeightInfo
from fewbits.planning.scheme import Scheme

FORM = Coded(metadata_of)
SCHEMES = [
    Scheme("int8", per="channel"),
    Scheme("int8"),
    Scheme("int4", per="group", group_size=16, symmetric=False),
    Scheme("int4", per="group", group_size=16, symmetric=False, range="half_quadratic"),
    Scheme("uint4", per="channel"),
    Scheme("uint3", per="channel", symmetric=False),
    Scheme("int3", per="group", group_size=16),
    Scheme("int16", per="channel"),
    Scheme("binary", per="channel"),
    Scheme("ternary", per="group", group_size=16),
    Scheme("nf4", per="group", group_size=16),
    Scheme("log3", per="channel"),
    Scheme("codebook4", per="channel"),
    Scheme("codebook2"),
    Scheme("fp8_e5m2", per="channel"),
    Scheme("fp4_e2m1"),
    Scheme("mxfp4", per="group", group_size=32),
    Scheme("mxfp8_e4m3", per="group", group_size=32),
    Scheme("nvfp4", per="group", group_size=16),
]
WEIGHTS = {
    "matrix": WeightInfo("a.weight", (70, 64), 0, 1),
    "narrow": WeightInfo("a.weight", (33, 32), 0, 1),
    "transposed convolution": WeightInfo("a.weight", (16, 8, 3, 3), 1, 0),
}


def drawn(weight, scheme):
    x = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
    return x, FORM.round(x, weight, "BF16", scheme)


def fits(weight, scheme):
    channel = torch.Size(weight.shape).numel() // weight.shape[weight.channel_axis]
    return scheme.group_size is None or channel % scheme.group_size == 0


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_what_is_encoded_is_decoded_and_as_large_as_planned(scheme, kind):
    weight = WEIGHTS[kind]
    if not fits(weight, scheme):
        return
    _, q = drawn(weight, scheme)
    parts = FORM.encode(weight, q)
    planned = {part.name: part for part in FORM.parts(weight, "BF16", scheme)}
    assert set(parts) == set(planned)
    for name, tensor in parts.items():
        assert (tensor.dtype, tuple(tensor.shape)) == (DTYPES[planned[name].dtype], planned[name].shape), name
    assert next(iter(planned)).endswith(".codes")
    again, values = FORM.decode(weight, "BF16", scheme, parts, weight.shape[0])
    assert torch.equal(again.codes, q.codes)
    for word in ("scale", "zero_point", "codebook", "tensor_scale"):
        one, other = getattr(q, word), getattr(again, word)
        assert (one is None and other is None) or torch.equal(one, other)
    assert torch.equal(values, q.dequantize(torch.bfloat16))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_slices_of_rows_lie_one_behind_the_other(scheme):
    if scheme.per == "tensor" or find(scheme.qtype).tensor_scale:
        return
    weight = WEIGHTS["matrix"]
    x, q = drawn(weight, scheme)
    whole = FORM.encode(weight, q)
    parts = FORM.parts(weight, "BF16", scheme)
    joined = {part.name: bytearray(part.nbytes) for part in parts}
    for start, stop in ((0, 32), (32, 64), (64, 70)):
        encoded = FORM.encode(weight, FORM.round(x[start:stop], weight, "BF16", scheme))
        for part in parts:
            first, count = part.span(start, stop, 70)
            data = as_bytes(encoded[part.name]).numpy().tobytes()
            assert len(data) == count
            joined[part.name][first : first + count] = data
    for name, data in joined.items():
        assert bytes(data) == as_bytes(whole[name]).numpy().tobytes(), name


def test_a_book_of_few_values_is_filled_up():
    weight = WeightInfo("a.weight", (32, 32), 0, 1)
    x = torch.tensor([-1.0, 0.0, 0.5]).repeat(32, 11)[:, :32].contiguous()
    q = FORM.round(x, weight, "F32", Scheme("codebook4", per="channel"))
    assert q.codebook.shape == (32, 16) and torch.equal(q.dequantize(), x)
    assert torch.equal(q.codes, quantize(x, "codebook4", channel_axis=0).codes)


def test_a_file_is_one_of_a_module(tmp_path):
    weight, scheme = WEIGHTS["matrix"], SCHEMES[2]
    from fewbits.models.checkpoint.form import Held

    header = FORM.metadata([Held(("a.weight", "b.weight"), weight, "BF16", scheme)])
    save_file(dict(FORM.encode(weight, drawn(weight, scheme)[1])), tmp_path / "a.safetensors", dict(header))
    assert is_module_file(tmp_path / "a.safetensors")


def test_files_have_names_of_their_own():
    assert FORM.file("model.safetensors") == "fewbits.safetensors"
    assert FORM.file("model-00001-of-00002.safetensors") == "fewbits-00001-of-00002.safetensors"
    assert FORM.file("part.safetensors") == "fewbits-part.safetensors"
