"""Small nets of the kinds whose channels hang together in different ways: images [n, 3, 8, 8] to logits [n, 5]."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def conv(channels_in, channels, kernel=3, **more):
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False, **more),
        nn.BatchNorm2d(channels),
    )


class Residual(nn.Module):
    """Two sums, the second with a shortcut that takes every other pixel and pads channels with zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 12), conv(12, 8)
        self.c, self.d = conv(8, 16, stride=2), conv(16, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        x = functional.relu(x + self.b(functional.relu(self.a(x))))
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = functional.relu(short + self.d(functional.relu(self.c(x))))
        return self.last(functional.avg_pool2d(x, 4).flatten(1))


class Depthwise(nn.Module):
    """An inverted residual with a gate, two channels made of each, and PReLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.deep = conv(3, 8), conv(8, 16, 1), conv(16, 32, groups=16)
        self.squeeze, self.gate, self.narrow = nn.Conv2d(32, 4, 1), nn.Conv2d(4, 32, 1), conv(32, 8, 1)
        self.act, self.scale = nn.PReLU(32), nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.last = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = functional.hardswish(self.stem(x))
        y = self.act(self.deep(functional.relu6(self.wide(x))))
        y = y * torch.sigmoid(self.gate(functional.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = functional.max_pool2d(x + self.scale * self.narrow(y), 2)
        return self.last(x.flatten(1))


class Branches(nn.Module):
    """Branches that are concatenated, one of them transposed, and a grouped convolution, which is left alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 6, 1), conv(8, 10)
        self.grouped, self.up = conv(16, 16, groups=4), nn.ConvTranspose2d(16, 6, 2, stride=2)
        self.last = nn.Linear(14, 5)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        y = torch.cat([functional.relu(self.a(x)), functional.relu(self.b(x))], 1)
        y = functional.max_pool2d(functional.relu(self.grouped(y) + y), 2)
        z = torch.cat([x, self.up(y)], dim=1)
        return self.last(z.mean(dim=(2, 3)))


class Perceptron(nn.Module):
    """Tokens [n, 4, 12]: a hidden layer between layer norms, behind attention of two heads."""

    def __init__(self):
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(12, 2, batch_first=True), nn.LayerNorm(12)
        self.up, self.down, self.last = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.last((x + self.down(functional.gelu(self.up(x)))).mean(1))


def settled(net):
    """With batch norms of all kinds."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value in (part.weight, part.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (part.bias, part.running_mean):
                nn.init.normal_(value)
    return net.eval()
