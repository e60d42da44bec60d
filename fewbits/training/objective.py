"""What training makes smaller: a number for a module on a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Objective = Callable[[nn.Module, Any, Any], Tensor]
"""Called with the module, the inputs and the targets of a batch; gives a scalar with gradients."""

Loss = Callable[[Any, Any], Tensor]
"""Called with what a module gave and the targets."""


def supervised(loss: Loss = functional.cross_entropy) -> Objective:
    """How far outputs are from targets; by default cross entropy, logits [n, classes] against classes [n]."""

    def objective(module: nn.Module, inputs: Any, targets: Any) -> Tensor:
        return loss(first(call(module, inputs)), targets)

    return objective


def call(module: nn.Module, inputs: Any) -> Any:
    """What a module gives for inputs: a tensor, a tuple or list of arguments, or a dict of named ones."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, Tensor):
        return module(*inputs)
    return module(inputs)


def first(outputs: Any) -> Any:
    """The tensor that a module gave; of several the one called ``logits``, or the first."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs.get("logits", next(iter(outputs.values())))
    return outputs[0]
