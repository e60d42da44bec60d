"""Roundings that make up for each other: with data a module is closer on other data, whatever the layer or format."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

import fewbits as fb
from fewbits.modules.compensate import _Weights
from fewbits.modules.files import coded_weights
from fewbits.modules.running import Enough
from fewbits.planning.recipe import PRESETS, Recipe, Rule
from fewbits.planning.scheme import Scheme
from tests.modules.layers import Calls, sqnr

INT4 = Recipe("int4", (Rule("*", Scheme("int4", "channel", range="mse")),), compensate=True)
CONVOLUTION = {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}
LAYERS = {
    "Linear": (lambda: nn.Linear(48, 40), (48,)),
    "Conv1D": (lambda: Conv1D(40, 48), (5, 48)),
    "matmul": (lambda: Calls(torch.matmul, 48, 40), (5, 48)),
    "MultiheadAttention": (lambda: nn.TransformerEncoderLayer(48, 4, 64, batch_first=True), (5, 48)),
    "Conv2d": (lambda: nn.Conv2d(8, 16, 3, **CONVOLUTION), (8, 9, 9)),
    "Conv1d": (lambda: nn.Conv1d(8, 16, 5, padding="same"), (8, 12)),
    "Conv2d, reflected": (lambda: nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect"), (8, 9, 9)),
    "Conv2d, depthwise": (lambda: nn.Conv2d(8, 16, 3, groups=8), (8, 9, 9)),
    "conv2d by keywords": (
        lambda: Calls(lambda x, w: functional.conv2d(x, weight=w), 16, 8, 3, 3),
        (8, 9, 9),
    ),
}


def inputs(shape, seed):
    """Samples whose neighbours and channels hang together."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(96, *shape, generator=draw).cumsum(dim=-1)
    mixing = torch.randn(shape[-1], shape[-1], generator=torch.Generator().manual_seed(9))
    return x + x @ mixing if len(shape) < 3 else x


@torch.no_grad()
def closeness(module, small, x):
    return sqnr(module(x), small(x))


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_that_is_a_product_with_patches_or_rows(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    module = make().eval()
    others = inputs(shape, 1)
    nearest = closeness(module, fb.quantize(module, INT4), others)
    found = fb.quantize(module, INT4, list(inputs(shape, 0).split(24)), effort="fast")
    assert closeness(module, found, others) > nearest + 0.2
    assert not any("rounded to nearest" in note for note in fb.look(found).notes)


@pytest.mark.parametrize("name", [name for name in LAYERS if "onv" in name and name != "Conv1D"])
def test_moments_are_of_the_patches_that_a_convolution_multiplies(name):
    make, shape = LAYERS[name]
    module, x = make(), inputs(shape, 0)[:9]
    ((weight_name, weight),) = [one for one in module.named_parameters() if one[1].dim() > 1]
    watch = _Weights({id(weight): weight_name}, frozenset((weight_name,)))
    with torch.no_grad():
        with suppress(Enough), watch:
            module(x)
        output = module(x) - module(torch.zeros_like(x))
    moment = watch.moments[weight_name].sum(dim=0)
    rows = weight.detach().flatten(1).unflatten(0, (len(moment), -1))
    energy = ((rows @ moment) * rows).sum(dim=-1).flatten()
    torch.testing.assert_close(energy, output.square().movedim(1, 0).flatten(1).sum(dim=1), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("recipe", "gained"),
    [
        *(("w8", 2), ("w8a8_dynamic", 0.02), ("w4_g32", 2), ("w3_g32", 2), ("w_ternary", 1)),
        *(("w_nf4_g32", 2), ("w_codebook4", 2), ("w2", 1)),
    ],
)
def test_every_format_with_levels_for_all_codes(recipe, gained):
    torch.manual_seed(0)
    module, x = nn.Linear(64, 48), inputs((64,), 0)
    nearest = closeness(module, fb.quantize(module, recipe), inputs((64,), 1))
    found = fb.quantize(module, recipe, x, effort="fast")
    assert closeness(module, found, inputs((64,), 1)) > nearest + gained
    (weight,) = coded_weights(found)
    assert weight.row.name != "int8" or int(weight.int8()[0].min()) >= -127


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


def test_one_codebook_for_several_layers():
    module, others = net(), inputs((64,), 1)
    rules = (Rule("*", Scheme("codebook4", range="mse")),)
    recipe = replace(PRESETS["w4_codebook"], rules=rules, share=True)
    plain = fb.quantize(module, recipe)
    found = fb.quantize(module, recipe, inputs((64,), 0), effort="fast")
    for small in (plain, found):
        books = [weight.values()["codebook"] for weight in coded_weights(small)]
        assert len(books) == 3 and all(torch.equal(book, books[0]) for book in books)
    assert closeness(module, found, others) > closeness(module, plain, others) + 3
    own = fb.quantize(module, replace(recipe, share=False), inputs((64,), 0), effort="fast")
    assert closeness(module, own, others) > closeness(module, found, others)


def test_data_that_can_be_read_once_and_a_caller_without_gradients():
    module, x = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 16)), torch.arange(40).view(4, 10)
    with torch.no_grad():
        once = fb.quantize(module, "w4", iter([x]), effort="fast")
    again = fb.quantize(module, "w4", [x], effort="fast")
    assert torch.equal(once(x), again(x))


def test_weights_that_lie_turned_learn_too(monkeypatch):
    monkeypatch.setitem(fb.quantize.__globals__["STEPS"], "normal", 2)
    module = nn.Sequential(Conv1D(40, 48), nn.ReLU(), Conv1D(16, 40))
    small = fb.quantize(module, "w4", inputs((5, 48), 0))
    assert closeness(module, small, inputs((5, 48), 1)) > 15


def test_how_long_learning_takes_is_said(monkeypatch):
    from fewbits.modules import learn

    monkeypatch.setattr(learn, "LONG", 0.0)
    monkeypatch.setitem(fb.quantize.__globals__["STEPS"], "normal", 4)
    told = []
    fb.quantize(net(), "w4", inputs((64,), 0), progress=lambda stage, *_: told.append(stage))
    assert any(stage.startswith("learning takes about") for stage in told)
