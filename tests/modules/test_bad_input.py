"""Modules and recipes that cannot be: each in one line that says what, where, and what to do."""

import pytest
import torch
from torch import nn

import fewbits as fb
from fewbits.errors import InputError
from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme


def refused(module, recipe, *words):
    with pytest.raises(InputError) as error:
        fb.quantize(module, recipe)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_no_module():
    refused(3, "w8", "module is a int", "nn.Module")


def test_torchscript():
    with pytest.warns(DeprecationWarning, match="script"):
        scripted = torch.jit.script(nn.Linear(4, 4))
    refused(scripted, "w8", "TorchScript")


def test_parameters_on_the_meta_device():
    refused(nn.Sequential(nn.Linear(8, 8, device="meta")), "w8", "'0.weight'", "meta device", "to_empty")


def test_lazy_layers():
    refused(nn.Sequential(nn.LazyLinear(8)), "w8", "'0.weight'", "not initialized")


def test_quantized_already():
    small = fb.quantize(nn.Sequential(nn.Linear(64, 64)), "w8")
    refused(small, "w4_g32", "quantized already", "0.weight is int8")


def test_weights_of_another_library():
    class Other(torch.Tensor):
        pass

    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.zeros(8, 8).as_subclass(Other))
    refused(layer, "w8", "'weight' is a Other", "another library")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight[2, 3] = value
    refused(nn.Sequential(layer), "w8", "'0.weight'", "(2, 3)")


def test_nothing_to_quantize():
    refused(nn.LayerNorm(8), "w8", "nothing to quantize")
    refused(nn.Linear(1, 8), "w8", "leaves every layer of the module in float", "too small")


def test_a_recipe_that_is_none():
    refused(nn.Linear(64, 64), "w9", "recipe 'w9'", "w8a8_dynamic", "w3_g64")
    refused(nn.Linear(64, 64), "w_nothing", "unknown qtype 'nothing'")
    refused(nn.Linear(64, 64), "nowhere.toml", "nowhere.toml")


def test_a_recipe_that_names_a_layer_that_is_not_there():
    recipe = Recipe("mine", (Rule("heat", Scheme("int8", "channel")),))
    refused(nn.Sequential(nn.Linear(64, 64)), recipe, "'heat' matches no layer", "near names")
    with pytest.raises(InputError, match="'lost' matches no layer"):
        fb.quantize(nn.Linear(64, 64), "w8", exclude=["lost"])


def test_groups_that_do_not_divide():
    module = nn.Sequential(nn.Linear(48, 8), nn.Linear(64, 8), nn.Linear(40, 8))
    refused(module, "w4_g32", "2 layers: 0 (48), 2 (40)")


def test_activations_with_ranges():
    refused(nn.Linear(64, 64), "w8a8", "needs data to calibrate with", "fb.quantize(module, 'w8a8', data)")


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.first(x) if x.sum() > 0 else self.second(x)


def test_control_flow_that_depends_on_data():
    """Weights become codes all the same; what an engine runs cannot branch."""
    x = torch.ones(2, 32)
    small = fb.quantize(Branches(), "w8")
    assert not torch.equal(small(x), small(-x))
    with pytest.raises(InputError, match="depends on the values of its input") as error:
        fb.quantize(Branches().eval(), "w8a8", torch.randn(16, 32).numpy())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", ["bf16", "w4_g32"])
def test_parameters_in_fp64(recipe):
    small = fb.quantize(nn.Sequential(nn.Linear(32, 32)).double(), recipe)
    assert small(torch.ones(2, 32).double()).dtype == torch.float64
