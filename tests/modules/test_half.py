"""Whole modules in 16 bits: half the bytes, the same inputs and outputs, and no crash for want of a kernel."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fewbits as fb
from fewbits.errors import InputError
from fewbits.modules.half import PRODUCTS
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
    """An operator that has no kernel for 16 bits on the CPU, on parameters alone and on what is computed."""

    def __init__(self):
        super().__init__()
        self.first, self.places = nn.Linear(8, 16), nn.Parameter(rows(5, 16))

    def forward(self, x):
        return torch.cdist(self.first(x), self.places) + torch.cdist(self.places, -self.places).mean(1)


class Written(nn.Module):
    """Writes what it computes into 16 bits, and what is stored into what it computes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.register_buffer("state", torch.zeros(4, 8))

    def forward(self, x):
        y = self.first(x)
        state = self.state.clone()
        state[torch.tensor([0, 2])] = y[:2]
        state.add_(y).clamp_(-1, 1)
        y[:, torch.tensor([1])] = self.first.weight[:4, :1]
        return y.mul_(self.state.add(1)) + state


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


@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_operators_without_a_kernel_are_computed_in_float32(recipe):
    torch.manual_seed(0)
    net, x = Distances().eval(), rows(5, 8)
    small = fb.quantize(net, recipe)
    assert fb.look(small).notes == ()
    assert sqnr(net(x), small(x)) > 40
    (note,) = fb.look(small).notes
    assert "cdist" in note and "computed in float32" in note
    assert torch.isfinite(small.first(rows(5, 8).to(small.places.dtype))).all()  # a part by itself
    torch.testing.assert_close(small(x), copy.deepcopy(small)(x))


class Views(nn.Module):
    """Relies on how the numbers of an image lie in memory."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 4)

    def forward(self, image):
        y = self.conv(image)
        return self.head(y.view(len(y), -1)), y


def test_images_lie_in_memory_as_the_module_expects():
    net, image = Views().eval(), rows(2, 3, 8, 8)
    small = fb.quantize(net, "bf16")
    (logits, conv), (expected, _) = small(image), net(image)
    assert sqnr(expected, logits) > 40
    assert conv.is_contiguous() and small.conv(image.bfloat16()).is_contiguous()


@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_writing_in_place_across_types(recipe):
    torch.manual_seed(0)
    net, x = Written().eval(), rows(4, 8)
    assert sqnr(net(x), fb.quantize(net, recipe)(x)) > 40


def seen(module, call):
    """The type of what goes into each product's function, and of what comes out, in order."""
    found = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func in PRODUCTS:
                found.append((func.__name__, args[0].dtype, result.dtype))
            return result

    with Watch():  # within the module's own, which therefore has had its way
        call()
    return found


def test_long_products_are_in_16_bits_and_all_else_in_float32():
    torch.manual_seed(0)
    image = torch.randn(16, 3, 16, 16)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 8, 3), nn.Flatten(), nn.SiLU())
    net = net.append(nn.Linear(8 * 12 * 12, 64)).append(nn.LayerNorm(64)).append(nn.Linear(64, 32)).eval()
    small = fb.quantize(net, "bf16")
    kinds = seen(small, lambda: small(image))
    wide, narrow = torch.float32, torch.bfloat16
    assert kinds == [
        ("conv2d", wide, wide),
        ("conv2d", narrow, narrow),
        ("linear", narrow, narrow),
        ("linear", wide, wide),
    ]
    whole = copy.deepcopy(net).bfloat16()(image.bfloat16()).float()
    assert sqnr(net(image), small(image)) > sqnr(net(image), whole) + 1


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
