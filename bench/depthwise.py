"""A depthwise-separable net on the digits whose channels differ in size by up to a hundred times."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

WIDTHS = (16, 32, 32, 64, 64, 64, 64)
LARGEST = 100.0


def network() -> nn.Module:
    """A convolution, then pairs of a depthwise and a pointwise one, each with a batch norm and a ReLU."""
    from torch import nn

    layers: list[nn.Module] = [nn.Conv2d(1, WIDTHS[0], 3, padding=1)]
    for before, after in pairwise(WIDTHS):
        layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, before, 3, padding=1, groups=before)]
        layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, after, 1)]
    last = WIDTHS[-1]
    return nn.Sequential(
        *layers, nn.BatchNorm2d(last), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10)
    )


def spread(model: nn.Module) -> None:
    """Multiply every other channel that a depthwise convolution reads by 100, and divide its filters by the same.

    A ReLU lets positive factors through, so the outputs stay what they were.
    """
    import torch

    layers = list(model.children())
    with torch.no_grad():
        for norm, layer in zip(layers, layers[2:], strict=False):
            if isinstance(layer, torch.nn.Conv2d) and layer.groups > 1:
                assert isinstance(norm, torch.nn.BatchNorm2d)
                factors = torch.ones(layer.groups)
                factors[::2] = LARGEST
                norm.weight *= factors
                norm.bias *= factors
                layer.weight /= factors[:, None, None, None]


def write(path: Path) -> None:
    """Train it and write it as ONNX."""
    from fewbits.demo import TRAINED, digits, export, train

    x, labels = digits()
    model = train(network, x[:TRAINED], labels[:TRAINED], lambda stage, done, total: None)
    spread(model)
    export(model, path)
