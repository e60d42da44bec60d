"""Whole modules in 16 bits: half the bytes, the same inputs and outputs, and no crash for want of a kernel."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fewbits as fb
from fewbits.errors import InputError
from tests.modules.layers import LAYERS, Tied, flat, ids, made, rows, sqnr


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


class Net(nn.Module):
    """Layers, a norm with running statistics, and outputs in a nest beside something that is no float."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, image, scale=None):
        y = self.head(torch.relu_(self.norm(self.conv(image))).mean((2, 3)))
        return {"logits": y if scale is None else y * scale, "best": y.argmax(1)}


class Distances(nn.Module):
    """Operators that have no kernel for float16 on the CPU."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(9, 4)

    def forward(self, x):
        y = torch.cdist(self.first(x), self.first(-x))
        return self.second(torch.fft.rfft(torch.cat([y, self.first(x)], 1)[:, :16]).abs())


@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_half_the_bytes_and_the_same_types_in_and_out(recipe):
    torch.manual_seed(0)
    net, image = Net().eval(), rows(2, 3, 8, 8)
    small = fb.quantize(net, recipe)
    assert {p.dtype for p in small.parameters()} == {
        getattr(torch, {"fp16": "float16", "bf16": "bfloat16"}[recipe])
    }
    assert sum(p.nbytes for p in small.parameters()) * 2 == sum(p.nbytes for p in net.parameters())
    for inputs in ((image,), (image, torch.ones(4))):
        expected, got = net(*inputs), small(*inputs)
        assert got["logits"].dtype == torch.float32 and got["best"].dtype == torch.int64
        assert sqnr(expected["logits"], got["logits"]) > 40
    assert sqnr(net(image, scale=torch.ones(4))["logits"], small(image, scale=torch.ones(4))["logits"]) > 40
    assert net.conv.weight.dtype == torch.float32


@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "name", ["Linear", "Conv2d", "Embedding", "LSTM", "MultiheadAttention", "TransformerEncoder"]
)
def test_layers(name, recipe):
    module, inputs = made(name)
    assert sqnr(module(*inputs), fb.quantize(module, recipe)(*inputs)) > 40


@pytest.mark.parametrize(
    ("recipe", "dtype", "db"), [("fp16", torch.float16, 40), ("bf16", torch.bfloat16, 30)]
)
def test_operators_without_a_kernel_are_computed_in_float32(recipe, dtype, db):
    torch.manual_seed(0)
    net, x = Distances().eval(), rows(5, 8)
    small = fb.quantize(net, recipe)
    assert fb.look(small).notes == ()
    assert sqnr(net(x), small(x)) > db
    notes = fb.look(small).notes
    assert any("cdist" in note and "computed in float32" in note for note in notes)
    assert torch.isfinite(small.first(rows(5, 8).to(dtype))).all()  # a part by itself
    torch.testing.assert_close(small(x), copy.deepcopy(small)(x))


def test_an_error_of_the_modules_own_is_its_own():
    small = fb.quantize(Net().eval(), "fp16")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="channels"):
            small(rows(2, 5, 8, 8))
    assert small(rows(2, 3, 8, 8))["logits"].shape == (2, 4)


def test_copies_and_files(tmp_path):
    net, image = Net().eval(), rows(2, 3, 8, 8)
    for recipe in ("fp16", "bf16"):
        small = fb.quantize(net, recipe)
        path = tmp_path / "small.safetensors"
        fb.save(small, path)
        assert path.stat().st_size < sum(v.nbytes for v in small.state_dict().values()) + 2000
        for again in (fb.load(path, Net).eval(), copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            torch.testing.assert_close(again(image)["logits"], small(image)["logits"], rtol=0, atol=0)


def test_tied_weights_stay_tied(tmp_path):
    small = fb.quantize(Tied().eval(), "bf16")
    assert small.table.weight is small.head.weight
    fb.save(small, tmp_path / "small.safetensors")
    again = fb.load(tmp_path / "small.safetensors", Tied)
    assert again.table.weight is again.head.weight
    assert torch.equal(flat(again(ids(64, 3))), flat(small(ids(64, 3))))


def test_values_that_16_bits_cannot_hold():
    layer = nn.Linear(4, 4)
    layer.weight[1, 2] = 1e5
    with pytest.raises(InputError, match=r"'weight' holds 1e\+05, more than 65504.*use bf16"):
        fb.quantize(layer, "fp16")
    assert torch.isfinite(fb.quantize(layer, "bf16").weight).all()


def test_what_is_kept_in_float_is():
    small = fb.quantize(LAYERS["TransformerEncoder"][0](), "bf16", exclude=["layers.0.linear1"])
    assert small.layers[0].linear1.weight.dtype == torch.float32
    assert small.layers[1].linear1.weight.row.name == "bf16"
