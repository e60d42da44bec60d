"""Channels are removed for real: smaller layers, and what is left computes what it did."""

from __future__ import annotations

import copy
import re
import runpy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from fewbits.errors import InputError
from fewbits.training import (
    count_macs,
    least_missed_blocks,
    load_smaller,
    prune,
    prune_blocks,
    prune_channels,
    supervised,
)
from tests.training.nets import Branches, Depthwise, Perceptron, Residual, settled

EXAMPLE = Path(__file__).parents[2] / "examples" / "training_smaller.py"
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NETS = {Residual: X, Depthwise: X, Branches: X, Perceptron: X.reshape(4, 16, 12)}


def made(net):
    torch.manual_seed(0)
    return settled(net())


def removed(before, after):
    """By layer, which of a layer's numbers are no longer there: found by their values, which are all different."""
    parts = dict(after.named_modules())
    for name, part in before.named_modules():
        if isinstance(part, nn.BatchNorm2d):
            yield name, torch.isin(part.running_mean, parts[name].running_mean)


@pytest.mark.parametrize("kind", [Residual, Depthwise, Branches])
def test_what_is_left_computes_what_it_did(kind):
    net = made(kind)
    smaller = prune_channels(net, X, macs=0.5, exclude=["squeeze"] if kind is Depthwise else ())
    share = count_macs(smaller, X) / count_macs(net, X)
    assert 0.4 < share <= 0.5
    # The same net with nothing where channels went: their batch norm gives zero, and so does what reads only zero.
    silent = copy.deepcopy(net)
    changed = 0
    for name, kept in removed(net, smaller):
        norm = silent.get_submodule(name)
        with torch.no_grad():
            norm.weight.mul_(kept)
            norm.bias.mul_(kept)
        changed += int((~kept).sum())
    assert changed
    with torch.no_grad():
        torch.testing.assert_close(smaller(X), silent(X), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", list(NETS))
def test_layers_say_what_they_are(kind):
    net, x = made(kind), NETS[kind]
    net.train()
    smaller = prune_channels(net, x, channels=0.5)
    assert smaller.training and type(smaller) is kind
    assert sum(one.numel() for one in smaller.parameters()) < sum(one.numel() for one in net.parameters())
    for part in smaller.modules():
        if isinstance(part, nn.ConvTranspose2d):
            assert part.weight.shape[:2] == (part.in_channels, part.out_channels)
        elif isinstance(part, nn.Conv2d):
            assert part.weight.shape[:2] == (part.out_channels, part.in_channels // part.groups)
        elif isinstance(part, nn.Linear):
            assert part.weight.shape == (part.out_features, part.in_features)
        elif isinstance(part, nn.BatchNorm2d):
            assert {len(part.weight), len(part.running_var)} == {part.num_features}
    smaller(x).square().mean().backward()
    assert all(one.grad is not None and one.grad.shape == one.shape for one in smaller.parameters())
    assert net(x).shape == smaller(x).shape == (4, 5)


def test_what_hangs_together_goes_together():
    smaller = prune_channels(made(Residual), X, channels=0.5)
    # The stream's 8 channels lie in the middle of the 16 behind the padded shortcut; those padded stay.
    stream = smaller.stem[0].out_channels
    assert stream == smaller.b[0].out_channels == smaller.a[0].in_channels == 4
    assert smaller.d[0].out_channels == smaller.last.in_features == 8 + stream
    assert (smaller.a[0].out_channels, smaller.c[0].out_channels) == (6, 8)
    smaller = prune_channels(made(Depthwise), X, channels=0.5)
    assert smaller.deep[0].groups == smaller.wide[0].out_channels == 8
    assert smaller.deep[0].out_channels == smaller.gate.out_channels == smaller.act.num_parameters == 16
    assert len(smaller.scale) == smaller.stem[0].out_channels == 4 and smaller.last.in_features == 64
    smaller = prune_channels(made(Branches), X, channels=0.5)
    assert smaller.a[0].out_channels + smaller.b[0].out_channels == smaller.grouped[0].in_channels == 16
    assert smaller.last.in_features == smaller.stem[0].out_channels + smaller.up.out_channels == 7
    smaller = prune_channels(made(Perceptron), NETS[Perceptron], channels=0.5)
    assert (smaller.up.out_features, smaller.down.out_features) == (12, 12)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(16, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.last(torch.cat([functional.relu(self.a(x)), functional.relu(self.b(x))], 1))


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_layers_that_share_a_weight_go_on_sharing_it(importance):
    torch.manual_seed(0)
    net, x = Shared(), torch.randn(4, 3)
    smaller = prune_channels(net, x, macs=0.6, importance=importance, data=[(x, torch.arange(4))])
    silent = copy.deepcopy(net)
    with torch.no_grad():
        for a, b in zip(silent.parameters(), smaller.parameters(), strict=True):
            a.mul_(torch.isin(a, b))  # nothing where channels went
    again = load_smaller(copy.deepcopy(net), smaller.state_dict())
    for one in (smaller, again):
        assert one.b.weight is one.a.weight and one.a.out_features == one.b.out_features < 8
        torch.testing.assert_close(one(x), silent(x))


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.way = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
        self.size = size

    def forward(self, x):
        return x + self.size * self.way(x)


def test_the_blocks_that_do_least_are_missed_least():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), *map(Block, (1.0, 0.1, 2.0, 0.3)), nn.Linear(16, 5)).eval()
    x = torch.randn(64, 16)
    with torch.no_grad():
        data = [(x, net(x))]
    before = copy.deepcopy(net.state_dict())

    def least(count, data=data):
        return least_missed_blocks(net, x[:2], count, data, objective=supervised(functional.mse_loss))

    assert least(1) == ("2",) and least(3) == ("2", "4", "1")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(InputError, match="5 blocks cannot be left out; there are 4 that can: 1, 2, 3, 4"):
        least(5)
    with pytest.raises(InputError, match="there is no data"):
        least(1, [])


def test_blocks_are_left_out_and_states_loaded():
    class Deep(nn.Sequential):
        def forward(self, x):
            return super().forward(functional.relu(x)).flatten(1)

    net = Deep(
        nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), nn.Conv2d(8, 4, 3)
    )
    fewer = prune_blocks(net, X, ["1"])
    with torch.no_grad():
        torch.testing.assert_close(fewer(X), net[2](net[0](functional.relu(X))).flatten(1))
    with pytest.raises(InputError, match="there is no block 'layer1'; there are 1"):
        prune_blocks(net, X, ["layer1"])
    with pytest.raises(
        InputError, match=r"block '0' has inputs and output \[\[4, 3, 8, 8\], \[4, 8, 8, 8\]\]"
    ):
        prune_blocks(net, X, ["0"])
    smaller = prune_channels(net, X, channels=0.5)
    again = load_smaller(copy.deepcopy(net), smaller.state_dict())
    assert again[1][0].in_channels == 4
    with torch.no_grad():
        assert torch.equal(again(X), smaller(X))
    with pytest.raises(
        InputError, match=r"'0.weight' is \[8, 3, 3, 3\], which does not come of \[4, 3, 3, 3\]"
    ):
        load_smaller(smaller, net.state_dict())
    with pytest.raises(InputError, match=r"'1\.0\.bias' is in one of module and state"):
        load_smaller(net, fewer.state_dict())


def test_multiplications_and_weights_can_both_be_limited():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip

    def left(**limits):
        smaller = prune_channels(net, X, **limits)
        return tuple(count(smaller) / count(net) for count in (weights, lambda one: count_macs(one, X)))

    def weights(one):
        kinds = (nn.Conv2d, nn.Linear)
        return sum(part.weight.numel() for part in one.modules() if isinstance(part, kinds))

    for limits in ({"macs": 0.3}, {"params": 0.5}, {"macs": 0.3, "params": 0.5}):
        params, macs = left(**limits)
        assert (params <= 0.5) == ("params" in limits) and (macs <= 0.3) == ("macs" in limits)


def test_excluded_layers_and_multiples():
    smaller = prune_channels(made(Residual), X, macs=0.4, multiple=4, exclude=["a.*"])
    assert smaller.a[0].out_channels == 12
    assert {part.out_channels % 4 for part in smaller.modules() if isinstance(part, nn.Conv2d)} == {0}


def test_what_does_nothing_goes_first():
    net = made(Residual)
    with torch.no_grad():
        net.c[1].weight[::2] = 0
        net.c[1].bias[::2] = 0
        net.c[0].weight[::2] = 0
        net.d[0].weight[:, ::2] = 0
    batches = [(X, torch.tensor([0, 1, 2, 3]))]
    for more in ({}, {"importance": "taylor", "data": batches}):
        smaller = prune_channels(net, X, macs=0.9, **more)
        with torch.no_grad():
            torch.testing.assert_close(smaller(X), net(X), atol=1e-4, rtol=1e-4)


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    exact, cut, taught, rounded = map(float, re.findall(r"([\d.]+) %", out))
    assert cut < taught and min(taught, rounded) > exact - 5
    assert float(re.findall("left: (.*)", out)[0]) <= 0.4
    session = onnxruntime.InferenceSession("smaller.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: np.zeros((2, 1, 8, 8), np.float32)})[0].shape == (
        2,
        10,
    )


def test_what_is_refused():
    net = made(Residual)

    def refused(said, module=net, example=X, **more):
        with pytest.raises(InputError, match=said):
            prune_channels(module, example, **more)

    refused("give macs or params or both, or channels")
    refused("give macs or params or both, or channels", macs=0.5, channels=0.5)
    refused("params=0.01 would empty layer", params=0.01)
    refused("macs is 0; give the share to keep", macs=0)
    refused("channels is 1.5", channels=1.5)
    refused("multiple is 0", macs=0.5, multiple=0)
    refused("importance is 'l1'", macs=0.5, importance="l1")
    refused("taylor needs data", macs=0.5, importance="taylor")
    no_numbers = [(X * torch.nan, torch.arange(4))]
    refused("layer '.*' cannot be compared: .* hold NaN", macs=0.5, importance="taylor", data=no_numbers)
    refused("no batch", macs=0.5, importance="taylor", data=[])
    refused(r"macs=0.01 would empty layer '.*': with 1 channels left there .* it is 0\.\d+", macs=0.01)
    refused(r"channels=0.01 would empty layer '\w+\.0', which has \d+", channels=0.01)
    refused("'z' matches no layer; there are stem.0, a.0", macs=0.5, exclude=["z"])
    refused(
        "Linear has no channels that can be removed", module=nn.Linear(3, 3), example=X[0, 0, :, :3], macs=0.5
    )
    refused("cannot be exported", example=X[:, :2], macs=0.5)

    class Counting(nn.Sequential):
        def forward(self, x):
            return self[1](functional.relu(self[0](x)).view(4, 4, 64).mean(2))

    refused(
        "holds sizes, take them from shapes",
        module=Counting(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)),
        macs=0.5,
    )
    masked = copy.deepcopy(net)
    prune(masked, 0.5)
    assert parametrize.is_parametrized(masked.a[0])
    refused(r"layer 'stem.0' is parametrized; bake\(\) its masks", module=masked, macs=0.5)
