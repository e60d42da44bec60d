"""Weights in 2 bits, activations in 4, on handwritten digits: what it costs, and what a few epochs bring back."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fewbits.planning.recipe import Recipe, Rule
from fewbits.planning.scheme import Scheme
from fewbits.training import distillation, fit, qat

digits = load_digits()
x = torch.from_numpy(digits.images[:, None].astype(np.float32) / 16)
y = torch.from_numpy(digits.target.astype(np.int64))
train = DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=64, shuffle=True)


def accuracy(module: nn.Module) -> float:
    """Percent of the images kept for scoring."""
    return 100 * float((module(x[1200:]).argmax(1) == y[1200:]).float().mean())


torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 10),
)
fit(net, train, epochs=6, lr=5e-3, validate=accuracy)
print(f"float32                                  {accuracy(net):6.2f} %")

few = Rule("*", Scheme("int2", per="channel", range="mse"), Scheme("uint4", symmetric=False, range="mse"))
student = qat(net, Recipe("w2a4 throughout", (few,)), x[:256]).eval()
print(f"rounded after training to 2 and 4 bits   {accuracy(student):6.2f} %")
fit(student, train, epochs=5, lr=2e-3, objective=distillation(net))
print(f"5 epochs of quantization-aware training  {accuracy(student):6.2f} %")
print(f"written: {student.export('digits.onnx')}")
