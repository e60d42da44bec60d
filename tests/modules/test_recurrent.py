"""Recurrent layers and attention with int8 products."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fewbits as fb
from tests.modules.layers import rows, sqnr


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}])
def test_sequences(kind, options):
    layer = kind(64, 48, batch_first=True, **options).eval()
    small = fb.quantize(layer, "w8a8_dynamic")
    x = torch.randn(3, 7, 64)
    expected = layer(x)
    assert sqnr(expected, small(x)) > 30
    assert sqnr(expected, small(x)) < 60  # it is the int8 loop, and not the weights brought back
    assert sqnr(layer(x, expected[1]), small(x, expected[1])) > 30
    assert sqnr(layer(x[0]), small(x[0])) > 30
    packed = pack_padded_sequence(x, [7, 5, 2], batch_first=True)
    a, b = layer(packed), small(packed)
    assert sqnr((a[0].data, a[1]), (b[0].data, b[1])) > 30


@pytest.mark.parametrize(
    "cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda a, b: nn.RNNCell(a, b, nonlinearity="relu")]
)
def test_cells(cell):
    layer = cell(64, 48)
    small = fb.quantize(layer, "w8a8_dynamic")
    x = torch.randn(3, 64)
    assert 30 < sqnr(layer(x), small(x)) < 60
    states = layer(x)
    assert 30 < sqnr(layer(x, states), small(x, states)) < 60


def test_a_new_bias_counts():
    layer = nn.LSTM(64, 48)
    small = fb.quantize(layer, "w8a8_dynamic")
    x = torch.randn(5, 2, 64)
    small(x)
    for one in (layer, small):
        one.bias_ih_l0.add_(1)
    assert sqnr(layer(x), small(x)) > 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_bring_the_weights_back(dtype):
    small = fb.quantize(nn.GRU(64, 48).to(dtype), "w8a8_dynamic")
    x = torch.randn(5, 2, 64)
    assert small(x.to(dtype))[0].dtype == dtype
    assert sqnr(small.float()(x), small.to(dtype)(x.to(dtype))) > 30


def test_gradients_bring_the_weights_back():
    small = fb.quantize(nn.LSTM(64, 48), "w8a8_dynamic")
    with torch.enable_grad():
        x = torch.randn(5, 2, 64, requires_grad=True)
        small(x)[0].sum().backward()
    assert torch.isfinite(x.grad).all()


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])},
    "added": {"attn_mask": torch.triu(torch.full((5, 5), -1e9), 1)},
    "causal": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(5), "is_causal": True},
    "both": {
        "attn_mask": torch.triu(torch.ones(8, 5, 5, dtype=torch.bool), 1),
        "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
    },
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", MASKS)
def test_attention_is_torchs_attention(masks, batch_first, need_weights):
    layer = nn.MultiheadAttention(64, 4, batch_first=batch_first).eval()
    x = torch.randn(2, 5, 64)
    x = x if batch_first else x.transpose(0, 1)
    small = fb.quantize(layer, "w8a8_dynamic")
    options = {**MASKS[masks], "need_weights": need_weights}
    expected, got = layer(x, x, x, **options), small(x, x, x, **options)
    assert got[0].shape == expected[0].shape and (got[1] is None) == (expected[1] is None)
    assert 25 < sqnr(expected, got) < 60


def test_attention_of_other_kinds():
    layer = nn.MultiheadAttention(64, 4).eval()
    small = fb.quantize(layer, "w8a8_dynamic")
    x, y = torch.randn(5, 64), torch.randn(5, 2, 64)
    assert sqnr(layer(x, x, x, average_attn_weights=False), small(x, x, x, average_attn_weights=False)) > 25
    assert sqnr(layer(y, y + 1, y), small(y, y + 1, y)) > 30
    z = torch.randn(2, 5, 64)
    block = nn.TransformerDecoderLayer(64, 4, 128, batch_first=True).eval()
    assert sqnr(block(z, z), fb.quantize(block, "w8a8_dynamic")(z, z)) > 25


def test_rows_of_other_lengths_do_not_matter_to_the_step():
    layer = nn.Linear(64, 48)
    small = fb.quantize(layer, "w8a8_dynamic")
    x = torch.cat([rows(1, 64), 1000 * rows(1, 64)])
    assert sqnr(layer(x[:1]), small(x)[:1]) > 30
