"""Ranges known in advance: in an engine behind a module's face, and the same arithmetic in PyTorch, exactly."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbits as fb
from fewbits.errors import InputError
from fewbits.modules.files import coded_weights
from fewbits.modules.products import FloatProducts
from fewbits.modules.static import StaticProducts
from tests.modules.layers import rows, sqnr


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Net(nn.Module):
    """A small convolutional net whose head reads a sigmoid's and a softmax's result, one through a reshape."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.gate = nn.Conv2d(16, 8, 3, stride=2)
        self.head = nn.Linear(8 * 9, 10)
        self.last = nn.Linear(10, 4)
        self.tanh = nn.Linear(4, 4)

    def forward(self, image):
        x = torch.sigmoid(self.gate(torch.relu(self.conv(image))))
        x = self.last(self.head(x.flatten(1)).softmax(-1))
        return self.tanh(torch.tanh(x))


def images(count=32):
    return torch.randn(count, 3, 8, 8)


def products(module):
    return {
        names[0].removesuffix(".weight"): weight.products for weight, names in coded_weights(module).items()
    }


def integers(products, x):
    """Codes less the zero point, as NumPy's integers."""
    codes = np.round(x.numpy().astype(np.float32) / products.scale.numpy()) + products.zero_point.numpy()
    return np.clip(codes, 0, 255).astype(np.int64) - int(products.zero_point)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Linear(300, 40), (5, 300)),
        (lambda: nn.Conv1d(8, 16, 3, stride=2, padding=1), (2, 8, 9)),
        (lambda: nn.Conv2d(8, 16, 3, groups=4, dilation=2, padding_mode="circular", padding=2), (2, 8, 9, 9)),
        (lambda: nn.Conv3d(4, 8, 3, padding=1), (1, 4, 5, 5, 5)),
        (lambda: nn.ConvTranspose1d(8, 16, 3), (2, 8, 9)),
        (lambda: nn.ConvTranspose2d(8, 16, 3, groups=2, stride=2, output_padding=1), (2, 8, 5, 5)),
        (lambda: nn.ConvTranspose3d(4, 8, 3, bias=False), (1, 4, 3, 3, 3)),
    ],
)
def test_sums_are_exact_integers(layer, shape):
    plain, x = layer(), torch.randn(shape) * 3
    small = fb.simulate(plain, x)
    assert sqnr(plain(x), small(x)) > 30
    ((weight, _),) = coded_weights(small).items()
    found = weight.products
    # The same layer on NumPy's int64, brought back in float64.
    reference = layer().double()
    levels = torch.from_numpy(integers(found, x)).double()
    axis = weight.layout.channel_axis
    scale = (found.scale * weight.scale).double()
    reference.weight.copy_(weight.unpacked().double())
    tail = (1,) * (x.dim() - 2)
    per_output = scale.repeat(reference.groups if axis == 1 else 1) if hasattr(reference, "groups") else scale
    if reference.bias is not None:
        reference.bias.copy_(torch.round(plain.bias.double() / per_output))
    expected = reference(levels) * per_output.view(1, -1, *tail)
    torch.testing.assert_close(small(x).double(), expected, rtol=1e-6, atol=1e-9)


def test_known_ranges_need_no_calibration():
    small = fb.simulate(Net(), images())
    found = products(small)
    assert (float(found["head"].scale), int(found["head"].zero_point)) == (pytest.approx(1 / 255), 0)
    assert (float(found["last"].scale), int(found["last"].zero_point)) == (pytest.approx(1 / 255), 0)
    assert float(found["tanh"].scale) == pytest.approx(2 / 255) and int(found["tanh"].zero_point) in (
        127,
        128,
    )
    assert found["conv"].zero_point > 0 and found["gate"].zero_point == 0  # behind a ReLU nothing is negative


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_minmax", "w8a8_percentile", "w8a8_entropy"])
def test_every_way_to_find_a_range(recipe):
    net, data = Net(), images(64)
    small = fb.simulate(net, [data[:32], (data[32:],)], recipe)
    assert sqnr(net(data), small(data)) > 20


def test_extremes_are_those_of_all_batches():
    layer = nn.Linear(8, 8)
    small = fb.simulate(layer, [rows(4, 8), 10 * rows(4, 8), rows(4, 8)], "w8a8_minmax")
    low, high = float(10 * rows(4, 8).min()), float(10 * rows(4, 8).max())
    assert float(products(small)["weight"].scale) == pytest.approx((high - low) / 255)


def test_attention_and_functions_are_seen():
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
    x = torch.randn(4, 5, 64)
    small = fb.simulate(layer, x)
    found = products(small)
    assert all(isinstance(found[name], StaticProducts) for name in ("linear1", "linear2"))
    assert sqnr(layer(x), small(x)) > 25

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Parameter(torch.randn(16, 8))

        def forward(self, x):
            return functional.linear(x, self.own)

    module = Calls()
    assert isinstance(products(fb.simulate(module, rows(4, 8)))["own"], StaticProducts)


def test_layers_that_the_data_does_not_reach_stay_weight_only():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.never = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, more=False):
            return self.never(self.always(x)) if more else self.always(x)

    found = products(fb.simulate(Sometimes(), rows(4, 8)))
    assert isinstance(found["always"], StaticProducts) and isinstance(found["never"], FloatProducts)


def test_a_simulation_is_saved_with_its_ranges(tmp_path):
    net, data = Net(), images()
    small = fb.simulate(net, data)
    fb.save(small, tmp_path / "small.safetensors")
    again = fb.load(tmp_path / "small.safetensors", Net)
    assert torch.equal(again(data), small(data))
    assert "uint8 static" in str(fb.look(again)["conv"].weight)


def test_modes_and_parameters_are_left_alone():
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fb.simulate(net, images())
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "there is no data"),
        (3, "data is a int"),
        (torch.randn(2, 5, 8, 8), "forward raised on the data: RuntimeError"),
        (torch.full((2, 3, 8, 8), float("nan")), "'conv.weight' is NaN or infinite"),
    ],
)
def test_data_that_cannot_be(data, words):
    with pytest.raises(InputError, match=words):
        fb.simulate(Net(), data)


def test_a_recipe_without_ranges():
    with pytest.raises(InputError, match=r"use fb.quantize\(module, 'w8'\)"):
        fb.simulate(Net(), images(), "w8")


def test_in_an_engine_behind_a_modules_face(short_measuring, tmp_path):
    net, data = Net().eval(), images(64)
    small = fb.quantize(net, "w8a8_minmax", data.numpy())
    assert isinstance(small, nn.Module)
    expected, got = net(data[:4]), small(data[:4])
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert sqnr(expected, got) > 20
    with pytest.raises(InputError, match="what runs in an engine is kept by"):
        fb.save(small, tmp_path / "small.safetensors")
    # The engine's and the simulation's arithmetic agree better than either does with float.
    simulated = fb.simulate(net, data, "w8a8_minmax")(data[:4])
    assert sqnr(simulated, got) > 20
