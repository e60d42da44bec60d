"""Learning the roundings of a part: a real layer, and what could go wrong."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional

from fewbits.methods import reconstruction
from fewbits.methods.learned import LearnedCodes, LearnedShift, LearnedStep
from fewbits.methods.reconstruction import Material, Spent, reconstruct, seconds
from fewbits.numerics import quantize
from fewbits.threads import one_torch_thread
from tests.models.cifar import images


class Layer:
    """A convolution in 2 bits with its bias, on inputs in 8."""

    def __init__(self, weight, x):
        self.float_weight, bits = weight, quantize(weight, "int2", channel_axis=0, search="mse", qmin=-2)
        self.weight = LearnedCodes(weight, bits, -2, 1)
        self.bias = LearnedShift(torch.zeros(len(weight)), weight.flatten(1).norm(dim=1))
        self.step = LearnedStep(float(x.max().clamp(min=1e-6)) / 255, 0, 0, 255)
        self.learned = (self.weight, self.bias, self.step)
        exact = functional.conv2d(x, weight, padding=1)
        self.material = Material({"x": x}, {"x": x}, exact)

    def __call__(self, values):
        x = values["x"]
        return functional.conv2d(self.step(x), self.weight(x), self.bias(x), padding=1)

    def reconstruct(self, steps=100):
        return reconstruct(
            self, self.learned, self.material, Spent(steps, 8), torch.Generator().manual_seed(0)
        )


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def first_blocks_input(shared_data):
    """A real layer: the first convolution of ResNet-20's first block, and what it reads."""
    path = shared_data / "resnet20_cifar10.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    stored = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    x, _ = images(shared_data / "cifar10_jpeg_train10k.npz", 0, 32)

    def normal(y, name):
        parts = (stored[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(y, *parts)

    y = functional.conv2d(torch.from_numpy(x), stored["conv1.weight"], padding=1)
    return stored["layer1.0.conv1.weight"], normal(y, "bn1").relu()


def test_a_real_layer_has_a_fifth_of_the_error_left(first_blocks_input):
    before, after = Layer(*first_blocks_input).reconstruct()
    assert before > 0.05
    assert after < 0.2 * before
    assert Layer(*first_blocks_input).reconstruct(steps=0) == (before, before)


def test_the_same_seed_gives_the_same_codes(first_blocks_input):
    first, second = Layer(*first_blocks_input), Layer(*first_blocks_input)
    assert first.reconstruct(10) == second.reconstruct(10)
    assert torch.equal(first.weight.codes, second.weight.codes)


def test_what_makes_it_worse_is_undone(first_blocks_input, monkeypatch):
    monkeypatch.setattr(reconstruction, "RATES", dict.fromkeys(reconstruction.RATES, 30.0))
    layer = Layer(*first_blocks_input)
    codes = layer.weight.codes.detach().clone()
    before, after = layer.reconstruct(3)
    assert before == after
    assert torch.equal(layer.weight.codes, codes)
    assert layer.step.step.item() == pytest.approx(layer.material.exact["x"].max().item() / 255)


def test_the_time_is_told_without_a_change(first_blocks_input):
    layer = Layer(*first_blocks_input)
    codes = layer.weight.codes.detach().clone()
    one = seconds(layer, layer.learned, layer.material, Spent(1, 16))
    assert 0 < one < 10
    assert torch.equal(layer.weight.codes, codes)


@pytest.mark.parametrize("case", ["a single sample", "inputs of zero", "a dead channel", "weights of zero"])
def test_odd_material_is_no_reason_for_nan(case):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    x = torch.rand(8, 3, 6, 6, generator=generator)
    if case == "a single sample":
        x = x[:1]
    elif case == "inputs of zero":
        x = torch.zeros_like(x)
    elif case == "a dead channel":
        x[:, 1] = 0
        weight[2] = 0
    else:
        weight.zero_()
    layer = Layer(weight, x)
    before, after = layer.reconstruct(20)
    assert np.isfinite([before, after]).all()
    assert after <= before
    for one in layer.learned:
        for parameter in one.parameters.values():
            assert torch.isfinite(parameter).all()


def test_inputs_are_mixed_half_and_half():
    exact, rounded = torch.zeros(64, 100), torch.ones(64, 100)
    same = torch.arange(64)
    material = Material({"x": exact, "mask": same}, {"x": rounded, "mask": same}, torch.zeros(64))
    chosen = torch.tensor([3, 5, 8])
    found = material.mixed(chosen, torch.Generator().manual_seed(0))
    assert 0.4 < found["x"].mean() < 0.6
    assert found["mask"].tolist() == [3, 5, 8]
