"""A small net trained on handwritten digits, and its images."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from fewbits.training import fit


class DigitsNet(nn.Module):
    """Convolutions with batch norm, one of them residual: images [n, 1, 8, 8] to logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.last = nn.Linear(8 * 16, 10)

    def forward(self, image):
        x = functional.relu(self.first_norm(self.first(image)))
        x = functional.relu(x + self.inner_norm(self.inner(x)))
        return self.last(functional.max_pool2d(x, 2).flatten(1))


class Batches:
    """Images and labels in random order, another one each time."""

    def __init__(self, x, y, size=64):
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __iter__(self):
        for part in torch.randperm(len(self.x)).split(self.size):
            yield self.x[part], self.y[part]


@dataclass(frozen=True)
class Digits:
    """A trained net, images to train it with, and others to score it with."""

    net: nn.Module
    batches: Batches
    x: torch.Tensor
    y: torch.Tensor

    def accuracy(self, module) -> float:
        with torch.no_grad():
            return 100 * float((module(self.x).argmax(1) == self.y).float().mean())

    @property
    def calibration(self) -> np.ndarray:
        return self.batches.x[:128].numpy()


@pytest.fixture(scope="session")
def trained():
    arrays = load_digits()
    x = torch.from_numpy(arrays.images[:, None].astype(np.float32) / 16)
    y = torch.from_numpy(arrays.target.astype(np.int64))
    torch.manual_seed(0)
    net = DigitsNet()
    found = Digits(net, Batches(x[:1200], y[:1200]), x[1200:], y[1200:])
    fit(net, found.batches, epochs=8, lr=0.01)
    return found


@pytest.fixture
def digits(trained):
    return Digits(copy.deepcopy(trained.net), trained.batches, trained.x, trained.y)
