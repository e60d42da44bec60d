"""What leaves rounding little to go by, and what came of it, is told in the module's notes."""

import pytest
import torch
from torch import nn

import fewbits as fb
from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme
from tests.modules.layers import Tied, ids, rows
from tests.modules.test_batch_norm import PLAIN
from tests.modules.test_batch_norm import net as convolutions
from tests.modules.test_batch_norm import samples as images

UINT4 = Recipe("uint4", (Rule("*", Scheme("uint4", "channel", symmetric=False)),), compensate=True)


class Odd(nn.Module):
    """A layer that nothing reaches, one that gets zeros, one that gets infinities, and one that is transposed."""

    def __init__(self):
        super().__init__()
        self.unreached, self.zeros, self.infinite = (nn.Linear(32, 32) for _ in range(3))
        self.transposed = nn.ConvTranspose1d(4, 4, 8)
        self.plain = nn.Linear(32, 32)

    def forward(self, x):
        y = self.zeros(0 * x).sum() + self.transposed(x.view(-1, 4, 8)).sum()
        y = y + torch.nan_to_num(self.infinite(x / torch.zeros(1)), 0, 0, 0).sum()
        return self.plain(x) + y + (0.0 if len(x) else self.unreached(x))


def notes(module, recipe, data):
    return fb.look(fb.quantize(module, recipe, data, effort="fast")).notes


def test_layers_that_the_data_says_little_of():
    torch.manual_seed(0)
    told = notes(Odd().eval(), "w4", [rows(64, 32), rows(64, 32) + 0.1 * torch.randn(64, 32)])
    for why, name in (
        ("no calibration sample reaches these", "unreached"),
        ("nothing but zeros in every calibration sample", "zeros"),
        ("NaN or infinity for some of the data", "infinite"),
        ("knows linear layers and convolutions", "transposed"),
    ):
        assert next(note for note in told if why in note).endswith(f"rounded to nearest: {name}"), told
    assert len(told) == 4


def test_a_single_sample_whose_second_moment_is_not_positive_definite():
    told = notes(nn.Linear(64, 48), "w8", rows(1, 64))
    assert "calibrated on a single sample" in told[0]
    assert "positive definite only once it is damped: weight" in told[1]
    assert not notes(nn.Linear(64, 48), "w8", torch.randn(200, 64))


def test_codes_whose_zero_moves():
    assert "whose zero moves" in notes(nn.Linear(64, 48), UINT4, torch.randn(200, 64))[0]


@pytest.mark.parametrize("data", [None, ids(64, 40, 3)])
def test_tied_weights(data):
    assert "read are rounded once, for all of them: table" in notes(Tied(), "w8", data)[0]


def test_a_depthwise_layer_with_a_dead_channel():
    module = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8))
    with torch.no_grad():
        module[0].weight[2] = 0
    small = fb.quantize(module, "w4", torch.randn(32, 8, 6, 6), effort="fast")
    assert "weights are all zero, 1 in all, stay zero: 0" in fb.look(small).notes[0]
    assert float(small[0].weight.dequantize()[2].abs().max()) < 1e-30  # the format has no zero


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (images(2), "3 batch norms were estimated anew"),
        (torch.zeros(1, 3, 7, 7), "a single value for a channel"),
    ],
)
def test_batch_norms(data, words):
    assert any(
        words in note for note in notes(convolutions(), Recipe(**{**vars(PLAIN), "correct": True}), data)
    )


@pytest.mark.parametrize("switch", ["smooth", "protect", "equalize"])
def test_switches_that_a_module_in_place_has_no_room_for(switch):
    told = notes(nn.Linear(64, 48), Recipe("own", UINT4.rules, **{switch: True}), None)
    assert len(told) == 1 and f"the recipe's {switch} was not applied" in told[0] and "fb.compress" in told[0]


@pytest.mark.parametrize("recipe", ["w4_g64_hqq", "bf16"])
def test_data_that_is_not_used(recipe):
    assert "the data was not used" in notes(nn.Linear(64, 48), recipe, torch.randn(8, 64))[0]
