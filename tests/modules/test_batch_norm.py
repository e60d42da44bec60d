"""Batch norms of a module in codes, estimated again."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fewbits as fb
from fewbits.planning.recipe import PRESETS

PLAIN = replace(PRESETS["w2"], learn=False, compensate=False)


def net():
    """Convolutions with batch norms whose statistics are those of their inputs."""
    torch.manual_seed(0)
    layers = [
        part for width in (3, 16, 16) for part in (nn.Conv2d(width, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    ]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
    for part in module:
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    module.train()
    with torch.no_grad():
        for batch in samples(0):
            module(batch)
    return module.eval()


def samples(seed):
    return list(torch.randn(8, 16, 3, 12, 12, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def error(module, coded):
    x = torch.cat(samples(1))
    return float((coded(x) - module(x)).square().sum() / module(x).square().sum())


def test_outputs_are_closer_than_with_the_statistics_of_the_float_weights():
    module = net()
    plain = fb.quantize(module, replace(PLAIN, correct=False), samples(2))
    again = fb.quantize(module, replace(PLAIN, correct=True), samples(2))
    assert error(module, again) < error(module, plain) / 2
    assert not again[1].training
    assert again[1].momentum == module[1].momentum
    assert not torch.equal(again[1].running_mean, module[1].running_mean)


@pytest.mark.parametrize("data", [None, torch.zeros(1, 3, 7, 7)])
def test_without_data_or_with_nothing_to_estimate_from_they_stay(data):
    module = net()
    coded = fb.quantize(module, replace(PLAIN, correct=True), data)
    assert torch.equal(coded[1].running_mean, module[1].running_mean)
    assert torch.equal(coded[7].running_var, module[7].running_var)
    assert torch.equal(coded[7].num_batches_tracked, module[7].num_batches_tracked)


@pytest.mark.parametrize("biased", [True, False])
def test_without_data_biases_make_up_for_what_rounding_does_to_means(biased):
    """Or the means of the norms behind, where there is no bias; by what the norms before say of a layer's input."""
    module = net()
    if not biased:
        for part in module:
            if isinstance(part, nn.Conv2d):
                part.bias = None
    plain, found = (fb.quantize(module, replace(PLAIN, correct=correct)) for correct in (False, True))
    assert error(module, found) < error(module, plain) / 2
    changed = {
        name for name, value in plain.state_dict().items() if not torch.equal(value, found.state_dict()[name])
    }
    assert changed == ({"3.bias", "6.bias"} if biased else {"4.running_mean", "7.running_mean"})
