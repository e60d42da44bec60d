"""Few bits against data, on a net that reads digits: each pixel is a token, tables and linear layers in blocks."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import fewbits as fb
from fewbits.errors import InputError
from fewbits.methods import gptq
from fewbits.modules.files import coded_weights
from fewbits.modules.recipes import GROUP
from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme
from tests.modules.layers import sqnr

LEVELS, PIXELS, WIDTH = 17, 64, 64


class Reader(nn.Module):
    """Logits [n, 10] of pixels int64 [n, 64], each looked up by its place and its grey level."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(LEVELS * PIXELS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, pixels):
        x = self.table(pixels + LEVELS * torch.arange(PIXELS)).mean(dim=1)
        for block in self.blocks:
            x = self.norm(x + block(x))
        return self.head(x)


@pytest.fixture(scope="module")
def trained():
    """The net, images to calibrate with, and others."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(images).long(), torch.from_numpy(labels)
    module = Reader()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    with torch.enable_grad():
        for step in range(120):
            batch = slice(step % 10 * 128, step % 10 * 128 + 128)
            loss = nn.functional.cross_entropy(module(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()
    return module, images[:512], images[1300:]


def closeness(module, small, images):
    with torch.no_grad():
        return sqnr(module(images), small(images))


@pytest.mark.parametrize(
    ("recipe", "gained", "more"), [("w4", 1.0, 0.5), ("w2", 1.0, 2.0), ("w4_codebook", 5.0, 0.5)]
)
def test_each_effort_is_closer_than_the_one_before(trained, recipe, gained, more):
    module, calibration, others = trained
    before = {name: value.clone() for name, value in module.state_dict().items()}
    nearest = closeness(module, fb.quantize(module, recipe), others)
    fast = closeness(module, fb.quantize(module, recipe, calibration, effort="fast"), others)
    normal = closeness(module, fb.quantize(module, recipe, calibration), others)
    assert fast > nearest + gained
    assert normal > fast + more
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_file_is_as_small_as_its_bits_and_reads_back(trained, tmp_path):
    module, calibration, others = trained
    small = fb.quantize(module, "w2", calibration, effort="fast")
    assert all(weight.row.name == "normal2" for weight in coded_weights(small))
    fb.save(small, tmp_path / "small.safetensors")
    again = fb.load(tmp_path / "small.safetensors", arch=Reader)
    with torch.no_grad():
        assert torch.equal(small(others), again(others))
    weights = sum(weight.nbytes for weight in coded_weights(small))
    count = sum(weight.shape.numel() for weight in coded_weights(small))
    assert 8 * weights / count == pytest.approx(2 + 16 / GROUP)


def test_the_same_seed_gives_the_same_codes(trained):
    module, calibration, others = trained
    first, second = (fb.quantize(module, "w3", calibration[:64]) for _ in range(2))
    with torch.no_grad():
        assert torch.equal(first(others), second(others))


def test_groups_that_do_not_divide_get_a_scale_per_channel():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 33), nn.Linear(33, 64), nn.Linear(64, 5)
    )
    small = fb.quantize(module, "w4")
    groups = {names[0]: weight.layout.group_size for weight, names in coded_weights(small).items()}
    assert groups == {"0.weight": None, "2.weight": None, "3.weight": None, "4.weight": GROUP}


class Odd(nn.Module):
    """A layer that nothing reaches, one that gets zeros, and a tied table."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.table.weight
        self.unreached, self.zeros = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, tokens):
        x = self.table(tokens)
        return self.head(x) + (0.0 if len(tokens) else self.unreached(x)) + self.zeros(0 * x).sum()


@pytest.mark.parametrize("effort", ["fast", "normal"])
def test_layers_that_nothing_reaches_zeros_and_tied_weights(effort):
    torch.manual_seed(0)
    module, one = Odd().eval(), torch.arange(6)[None]
    small = fb.quantize(module, "w4", one, effort=effort)  # a single sample
    assert small.head.weight is small.table.weight
    assert closeness(module, small, torch.arange(50)[None]) > 15


def test_damping_is_found_for_inputs_that_hang_together(monkeypatch):
    """Fewer samples than columns: what is fixed for the usual case does worse than rounding to nearest."""
    torch.manual_seed(0)
    module, mixing = nn.Linear(64, 48), torch.randn(64, 64)
    few, others = (torch.randn(count, 64) @ mixing for count in (48, 2000))
    nearest = closeness(module, fb.quantize(module, "w4"), others)
    found = closeness(module, fb.quantize(module, "w4", few, effort="fast"), others)
    monkeypatch.setattr(gptq, "FLOORS", (gptq.FLOOR,))
    fixed = closeness(module, fb.quantize(module, "w4", few, effort="fast"), others)
    assert fixed < nearest < found
    assert found > fixed + 0.7


def test_what_is_wrong_with_the_data_is_said(trained):
    module, calibration, _ = trained
    with pytest.raises(InputError, match="there is no data in data"):
        fb.quantize(module, "w4", [])
    with pytest.raises(InputError, match="forward raised on the data: IndexError"):
        fb.quantize(module, "w4", calibration + 10_000)
    with pytest.raises(InputError, match="effort is 'most'; allowed are fast, normal, high"):
        fb.quantize(module, "w4", calibration, effort="most")


def test_rules_of_ones_own_learn_as_well(trained):
    module, calibration, others = trained
    rules = (Rule("embedding"), Rule("*", Scheme("int3", per="channel", range="mse")))
    recipe = Recipe("own", rules, learn=True)
    small = fb.quantize(module, recipe, calibration)
    assert isinstance(small.table.weight, nn.Parameter)
    assert closeness(module, small, others) > closeness(module, fb.quantize(module, recipe), others) + 2
