"""Weights in the compressed-tensors format: as its own library reads them, slice by slice, whatever the shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.errors import InputError
from fewbits.models.checkpoint.compressed_tensors import CompressedTensors
from fewbits.models.checkpoint.stored import as_bytes
from fewbits.planning.model_info import LayerInfo, WeightInfo
from fewbits.planning.scheme import Scheme

FORM = CompressedTensors()
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCHEMES = [
    Scheme("int8", per="channel"),
    Scheme("int8"),
    Scheme("int4", per="group", group_size=8),
    Scheme("int4", per="channel"),
    Scheme("int4", per="group", group_size=8, symmetric=False),
    Scheme("uint4", per="channel", symmetric=False),
    Scheme("int3", per="channel"),
    Scheme("int3", per="group", group_size=8, symmetric=False),
    Scheme("int2", per="group", group_size=8),
    Scheme("int5", per="channel", symmetric=False),
    Scheme("fp8_e4m3fn", per="channel"),
    Scheme("fp8_e4m3fn"),
]


def layer(shape, kind="linear", name="a.weight"):
    weight = WeightInfo(name, tuple(shape), 0, 1)
    return LayerInfo("a", name, "Linear", kind, (weight,), None, (), "")


def coded(scheme, dtype, shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
    return x, FORM.round(x, layer(shape).weights[0], dtype, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@given(rows=st.integers(1, 70), groups=st.integers(1, 9), dtype=st.sampled_from(list(DTYPES)))
@settings(max_examples=15, deadline=None)
def test_what_is_encoded_is_decoded(scheme, rows, groups, dtype):
    shape = (rows, groups * 8 if scheme.per == "group" else groups * 8 - 3)
    assert FORM.why_not(layer(shape), scheme) is None
    weight = layer(shape).weights[0]
    _, q = coded(scheme, dtype, shape)
    parts = FORM.encode(weight, q)
    planned = {
        part.name: (DTYPES.get(part.dtype), part.shape, part.nbytes)
        for part in FORM.parts(weight, dtype, scheme)
    }
    assert set(parts) == set(planned)
    for name, tensor in parts.items():
        wanted, shape_of_part, count = planned[name]
        assert tuple(tensor.shape) == shape_of_part and tensor.nbytes == count and tensor.is_contiguous()
        assert wanted in (None, tensor.dtype)
    again, values = FORM.decode(weight, dtype, scheme, parts, rows)
    assert torch.equal(again.codes, q.codes) and torch.equal(again.scale, q.scale)
    assert (again.zero_point is None) == (q.zero_point is None)
    assert q.zero_point is None or torch.equal(again.zero_point, q.zero_point)
    # Computed in the dtype of the scales, as transformers does.
    assert torch.allclose(values.float(), q.dequantize(), rtol=2 * torch.finfo(values.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_slices_of_rows_lie_one_behind_the_other(scheme):
    weight = layer((100, 24)).weights[0]
    x, q = coded(scheme, "BF16", (100, 24))
    whole = FORM.encode(weight, q)
    if scheme.per == "tensor":
        return
    joined = {part.name: bytearray(part.nbytes) for part in FORM.parts(weight, "BF16", scheme)}
    for start, stop in ((0, 32), (32, 96), (96, 100)):
        piece = FORM.round(x[start:stop], weight, "BF16", scheme)
        encoded = FORM.encode(weight, piece)
        for part in FORM.parts(weight, "BF16", scheme):
            first, count = part.span(start, stop, 100)
            data = as_bytes(encoded[part.name]).numpy().tobytes()
            assert len(data) == count
            joined[part.name][first : first + count] = data
    for name, data in joined.items():
        assert bytes(data) == as_bytes(whole[name]).numpy().tobytes(), name


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 24), (7, 40), (33, 64)])
def test_the_library_reads_the_same_weights(scheme, dtype, shape):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    weight = layer(shape).weights[0]
    _, q = coded(scheme, dtype, shape)
    parts = FORM.encode(weight, q)
    told = dict(FORM.config([(layer(shape), scheme)])["quantization_config"])
    assert told.pop("dequantize")
    config = QuantizationConfig.model_validate(told)
    (group,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(group.format)
    theirs = compressor.decompress({name.removeprefix("a."): part for name, part in parts.items()}, group)
    _, ours = FORM.decode(weight, dtype, scheme, parts, shape[0])
    assert torch.equal(theirs["weight"], ours)


@pytest.mark.parametrize(
    ("scheme", "of", "why"),
    [
        (Scheme("int8", per="channel"), layer((2, 3, 3, 3), "conv"), "linear layers and embeddings"),
        (Scheme("int8", per="channel"), layer((2, 3), name="a.kernel"), "tensors called weight"),
        (Scheme("nf4", per="channel"), layer((2, 3)), "integers of up to 8 bits and fp8_e4m3fn, not nf4"),
        (Scheme("int16", per="channel"), layer((2, 3)), "not int16"),
        (Scheme("fp8_e5m2", per="channel"), layer((2, 3)), "not fp8_e5m2"),
        (Scheme("uint8", per="channel"), layer((2, 3)), "symmetric codes around zero only"),
        (Scheme("int8", symmetric=False), layer((2, 3)), "zero points per channel or group"),
    ],
    ids=str,
)
def test_what_it_cannot_hold(scheme, of, why):
    assert why in FORM.why_not(of, scheme)


@pytest.mark.parametrize("range_", ["mse", "minmax"])
def test_compiled_groups_are_those_of_the_rules(range_):
    pytest.importorskip("numba", reason="numba is not installed")
    scheme = Scheme("int4", per="group", group_size=128, range=range_)
    x, q = coded(scheme, "BF16", (64, 1024))
    weight = layer(x.shape).weights[0]
    compiled, expected = FORM.compiled("BF16", scheme), FORM.encode(weight, q)
    parts = compiled.parts(weight, x)
    assert parts.keys() == expected.keys()
    for name, tensor in parts.items():
        assert tensor.dtype == expected[name].dtype and tensor.shape == expected[name].shape
        # Of two ranges as good as each other, sums in another order may choose the other.
        assert float((tensor == expected[name]).float().mean()) > 0.99
    _, values = FORM.decode(weight, "BF16", scheme, parts, len(x))
    signal, noise = compiled.energies(weight, x, parts)
    assert signal == pytest.approx(float(x.float().square().sum()), rel=1e-5)
    assert noise == pytest.approx(float((values.float() - x.float()).square().sum()), rel=1e-5)
    x[3, 77] = torch.nan
    with pytest.raises(InputError, match=r"'a.weight': nan at index \(3, 77\)"):
        compiled.parts(weight, x)
    assert FORM.compiled("F16", scheme) is None and FORM.compiled("BF16", SCHEMES[0]) is None
