"""Modules in, modules out: every kind of layer and every format, against the weights that codes stand for."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fewbits as fb
from fewbits.modules.convert import LEFT
from fewbits.modules.files import coded_weights
from fewbits.modules.weight import CodedWeight
from fewbits.numerics import find
from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme
from tests.modules.layers import LAYERS, Tied, flat, ids, made, rows, sqnr

BF16_DB = 45.0  # products of few rows are rounded to bfloat16
FLOAT_DB = 110.0
FORMATS = ("w4_g32", "w3_g32", "w2_g32", "w_nf4_g32", "w_uint4_g32", "w_codebook4", "w_ternary", "w_binary")
FORMATS += ("w_fp8_e4m3fn", "w_mxfp4", "w_nvfp4", "w_log4_g32")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad(), warnings.catch_warnings():
        # torch says it once, wherever it is called from
        warnings.filterwarnings("ignore", "LSTM with projections")
        yield


def dequantized(module, small):
    """The module with the numbers that the codes of ``small`` stand for."""
    plain = copy.deepcopy(module)
    for weight, names in coded_weights(small).items():
        plain.get_parameter(names[0]).copy_(weight.dequantize())
    return plain


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_computes_with_the_numbers_its_codes_stand_for(name):
    module, inputs = made(name)
    before = flat(module(*inputs))
    small = fb.quantize(module, "w8")
    assert type(small) is type(module)
    assert sqnr(dequantized(module, small)(*inputs), small(*inputs)) > BF16_DB
    assert sqnr(module(*inputs), small(*inputs)) > 30
    assert torch.equal(before, flat(module(*inputs)))  # the original is left alone
    assert not any(isinstance(one, CodedWeight) for one in module.modules())


@pytest.mark.parametrize("recipe", FORMATS)
@pytest.mark.parametrize("name", ["Linear", "Linear, many rows", "MultiheadAttention", "Functional"])
def test_every_format_computes_with_the_numbers_its_codes_stand_for(name, recipe):
    module, inputs = made(name)
    small = fb.quantize(module, recipe)
    few_rows = name in ("Linear", "Functional")
    limit = BF16_DB if few_rows else FLOAT_DB
    assert sqnr(dequantized(module, small)(*inputs), small(*inputs)) > limit


@pytest.mark.parametrize(
    "qtype", ["int8", "int4", "uint4", "int3", "nf4", "codebook4", "binary", "fp8_e4m3fn"]
)
@pytest.mark.parametrize("name", ["Embedding", "Embedding, odd", "EmbeddingBag"])
def test_tables_gather_codes_of_every_format(name, qtype):
    module, inputs = made(name)
    small = fb.quantize(module, Recipe("table", (Rule("embedding", Scheme(qtype, "channel")),)))
    assert sqnr(dequantized(module, small)(*inputs), small(*inputs)) > FLOAT_DB


@pytest.mark.parametrize("name", ["Linear", "Linear, many rows", "Functional", "TransformerEncoder"])
def test_dynamic_activations_lose_little(name):
    module, inputs = made(name)
    assert sqnr(module(*inputs), fb.quantize(module, "w8a8_dynamic")(*inputs)) > 35


def test_dynamic_products_are_exact_integers():
    layer = nn.Linear(64, 48, bias=False)
    small = fb.quantize(layer, "w8a8_dynamic")
    x = rows(7, 64)
    codes, scale = small._modules["weight"].int8()
    step = x.abs().amax(1, keepdim=True) / 127
    levels = (x / step).round().to(torch.int64)
    expected = (levels @ codes.long().T).float() * step * scale
    torch.testing.assert_close(small(x), expected, rtol=1e-6, atol=1e-7)


def test_a_row_of_zeros_and_no_rows_at_all():
    small = fb.quantize(nn.Linear(64, 48), "w8a8_dynamic")
    torch.testing.assert_close(small(torch.zeros(1, 64))[0], small.bias)
    for recipe in ("w8", "w4_g32", "w8a8_dynamic"):
        assert fb.quantize(nn.Linear(64, 48), recipe)(torch.zeros(0, 64)).shape == (0, 48)
    assert fb.quantize(nn.Embedding(50, 64), "w8")(torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 64)


@pytest.mark.parametrize("recipe", ["w8", "w4_g32", "w8a8_dynamic"])
def test_rows_that_are_not_aligned(recipe):
    """Views that begin anywhere: torch's 8-bit kernel loads whole vectors without looking."""
    small = fb.quantize(nn.Linear(64, 48).bfloat16(), recipe)
    wide = rows(3, 65).bfloat16()
    torch.testing.assert_close(small(wide.view(-1)[1:65]), small(wide.view(-1)[1:65].clone()))


def test_half_precision_goes_through_and_codes_stay_as_they_are():
    module = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 48))
    small = fb.quantize(module, "w4_g32")
    before = {name: value.clone() for name, value in small.state_dict().items() if "weight" in name}
    small.bfloat16()
    assert small(ids(50, 4)).dtype == torch.bfloat16
    assert sqnr(module(ids(50, 4)), small(ids(50, 4))) > 15
    after = small.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    small.float()
    assert small(ids(50, 4)).dtype == torch.float32


def test_double_precision():
    module = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4)).double()
    for recipe in ("w8", "w8a8_dynamic"):
        small = fb.quantize(module, recipe)
        assert small(rows(2, 64).double()).dtype == torch.float64
        assert sqnr(module(rows(2, 64).double()), small(rows(2, 64).double())) > 30


def test_tied_weights_are_quantized_once():
    module = Tied().eval()
    small = fb.quantize(module, "w8")
    assert small.table._modules["weight"] is small.head._modules["weight"]
    (names,) = coded_weights(small).values()
    assert names == ["table.weight", "head.weight"]


def test_codes_are_buffers_of_few_bytes():
    module, _ = made("TransformerEncoder")
    state = fb.quantize(module, "w4_g32").state_dict()
    codes = state["layers.0.linear1.weight.codes"]
    assert codes.dtype == torch.uint8 and codes.numel() == 128 * 64 // 2
    assert state["layers.0.linear1.weight.scale"].shape == (128, 2)
    assert not any(name.endswith(".weight") and value.dim() > 1 for name, value in state.items())


def test_gradients_flow_to_the_input():
    with torch.enable_grad():
        for recipe in ("w8", "w4_g32", "w8a8_dynamic"):
            x = rows(2, 64).requires_grad_()
            small = fb.quantize(nn.Linear(64, 48), recipe)
            small(x).sum().backward()
            expected = small.weight.dequantize().sum(0).expand(2, 64)
            torch.testing.assert_close(x.grad, expected)


def test_copies_pickles_and_state_dicts():
    module, inputs = made("TransformerEncoder")
    small = fb.quantize(module, "w4_g32")
    expected = small(*inputs)
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        torch.testing.assert_close(again(*inputs), expected)
    other = fb.quantize(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2), "w4_g32"
    )
    other.eval()(*inputs)  # what is made of the codes for the kernels must not outlive them
    other.load_state_dict(small.state_dict())
    torch.testing.assert_close(other(*inputs), expected)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(48, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("recipe", ["w8", "w4_g16", "w8a8_dynamic", "w_nf4_g16", "bf16"])
def test_torch_compile_captures_the_whole(recipe):
    module = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 48), nn.GELU(), Attends()).eval()
    inputs = (ids(50, 2, 5),)
    small = fb.quantize(module, recipe)
    expected = small(*inputs)
    torch._dynamo.reset()
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    assert sqnr(expected, compiled(*inputs)) > BF16_DB


def test_what_stays_in_float_is_listed_with_the_reason():
    module, _ = made("Functional")
    left = getattr(fb.quantize(module, "w8", exclude=["table"]), LEFT)
    assert left["places"] == "not used in a product that has codes"
    assert left["table"] == "the recipe keeps it in float"
    small = fb.quantize(nn.Sequential(nn.Linear(64, 64), nn.Linear(1, 2)), "w8")
    assert getattr(small, LEFT) == {"1.weight": "too small to gain anything"}


class Branches(nn.Module):
    """What it computes depends on its input, and it calls a function on a weight of its own."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.randn(32, 32))
        self.layer = nn.Linear(32, 32)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else nn.functional.linear(x, self.own)


def test_control_flow_that_depends_on_data_stays_as_it_is():
    module = Branches()
    small = fb.quantize(module, "w8")
    assert "cannot be traced" in getattr(small, LEFT)["own"]
    for x in (rows(2, 32), -rows(2, 32)):
        assert sqnr(module(x), small(x)) > 30


class Reads(nn.Module):
    """Does with its weight what one does with tensors."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(32, 32))

    def forward(self, x):
        w = self.w
        y = nn.functional.linear(x, w) + x @ w.to(x.dtype) + 2 * w[:2] + w.t()[0] - w.sum() + (-w)[0]
        return y / w.shape[0] + (w * w).float()[0] + torch.stack([w, w])[1, 0] + w.size(1) + w.dim()


def test_a_weight_can_be_read_as_a_tensor():
    module = Reads()
    small = fb.quantize(module, "w8")
    assert isinstance(small.w, CodedWeight)
    assert sqnr(dequantized(module, small)(rows(2, 32)), small(rows(2, 32))) > BF16_DB
    assert len(small.w) == 32 and small.w.device == torch.device("cpu") and small.w.numel() == 1024
    with pytest.raises(AttributeError):
        _ = small.w.nothing_of_the_kind


def test_training_modes_stay():
    module = nn.Sequential(nn.Linear(64, 64), nn.Dropout())
    assert fb.quantize(module, "w8").training
    assert not fb.quantize(module.eval(), "w8").training


def test_the_presets_rules_find_the_layers_of_modules():
    module = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 64), nn.Conv1d(4, 4, 3))
    small = fb.quantize(module, "w4_g32")
    formats = {names[0]: weight.row for weight, names in coded_weights(small).items()}
    assert formats["1.weight"] == find("int4") and formats["0.weight"] == find("int8")


def test_numpy_is_not_needed_to_look():
    assert np.asarray(fb.quantize(nn.Linear(64, 64), "w8").weight.dequantize()).shape == (64, 64)
