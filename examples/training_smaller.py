"""Half the multiplications and 8 bits on handwritten digits: channels removed, taught by the net as it was, rounded."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fewbits.training import count_macs, distillation, fit, prune_channels, qat

digits = load_digits()
x = torch.from_numpy(digits.images[:, None].astype(np.float32) / 16)
y = torch.from_numpy(digits.target.astype(np.int64))
train = DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=64, shuffle=True)


def told(what: str, module: nn.Module) -> None:
    """Percent of the images kept for scoring."""
    print(f"{what:34} {100 * float((module(x[1200:]).argmax(1) == y[1200:]).float().mean()):6.2f} %")


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
fit(net, train, epochs=6, lr=5e-3)
told("float32", net)

smaller = prune_channels(net, x[:1], macs=0.4, importance="taylor", data=list(train)[:4])
print(f"multiplications left: {count_macs(smaller, x[:1]) / count_macs(net, x[:1]):.2f}")
told("without the channels, as they are", smaller.eval())
fit(smaller, train, epochs=4, lr=5e-3, objective=distillation(net))
told("taught by the net as it was", smaller)

student = qat(smaller, "w8a8", x[:256])
fit(student, train, epochs=1, lr=1e-4, objective=distillation(net))
told("in 8 bits", student)
print(f"written: {student.export('smaller.onnx')}")
