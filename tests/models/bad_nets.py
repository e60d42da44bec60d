"""Modules and factories that cannot be compressed, each for one reason."""

import sys
from dataclasses import dataclass

import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x)


class Branching(Plain):
    def forward(self, x):
        if x.sum() > 0:
            return self.layer(x)
        return self.layer(-x)


class Counting(Plain):
    def forward(self, x):
        return self.layer(x)[:, : int(x.abs().max().item())]


class Selecting(Plain):
    def forward(self, x):
        return self.layer(x)[x[:, 0] > 0]


class Text(Plain):
    def forward(self, x):
        return "classes"


class Number(Plain):
    def forward(self, x):
        return {"y": self.layer(x), "scale": 3}


class Nothing(Plain):
    def forward(self, x):
        return None, []


@dataclass
class Answer:
    y: torch.Tensor


class Dataclass(Plain):
    def forward(self, x):
        return Answer(self.layer(x))


class Random(Plain):
    def forward(self, x):
        return self.layer(x) + torch.randn(4)


class Stateful(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        return self.layer(x) * self.steps


class Nameless(Plain):
    def forward(self, *inputs):
        return self.layer(inputs[0])


class Untranslated(Plain):
    def forward(self, x):
        return torch.linalg.svd(self.layer(x)).S


class Failing(Plain):
    def forward(self, x):
        return self.layer(x[:, 0])


class Changing(Plain):
    """Is another function when it is exported."""

    def forward(self, x):
        y = self.layer(x)
        return {"logits": 2 * y if torch.compiler.is_exporting() else y}


def with_nan():
    module = Plain()
    with torch.no_grad():
        module.layer.weight[2, 5] = float("nan")
        module.layer.weight[3, 0] = float("inf")
    return module


def raising():
    raise ValueError("no such size\nand more")


def leaving():
    sys.exit(3)


def number():
    return 7


CONSTANT = 7
