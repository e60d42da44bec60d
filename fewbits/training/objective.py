"""What training makes smaller: a number for a module on a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbits.errors import InputError

Objective = Callable[[nn.Module, Any, Any], Tensor]
"""Called with the module, the inputs and the targets of a batch (None without); gives a scalar with gradients."""

Loss = Callable[[Any, Any], Tensor]
"""Called with what a module gave and the targets."""


TARGETS = "labels"  # what a batch with names calls them


def cross_entropy(logits: Tensor, targets: Any) -> Tensor:
    """That of logits [n, classes] against classes [n]. Raises InputError where there are no targets."""
    if targets is None:
        raise InputError(
            f"the batches have no targets to learn from: give pairs of inputs and targets, or a dict with {TARGETS!r}; "
            "distillation with weight=1 needs none"
        )
    return functional.cross_entropy(logits, targets)


def supervised(loss: Loss = cross_entropy) -> Objective:
    """How far outputs are from targets; by default cross entropy, logits [n, classes] against classes [n]."""

    def objective(module: nn.Module, inputs: Any, targets: Any) -> Tensor:
        return loss(first(call(module, inputs)), targets)

    return objective


def split(batch: Any) -> tuple[Any, Any]:
    """A batch as inputs, for :func:`call`, and targets, None where it has none.

    A dict, or another mapping, holds named inputs and targets under ``labels``. The last element of a tuple or list is
    the targets, and what comes before are the inputs; a single element is the inputs, and so is a tensor.

    Raises:
        InputError: it is something else, or holds no inputs.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping) and set(batch) - {TARGETS}:
        return {name: one for name, one in batch.items() if name != TARGETS}, batch.get(TARGETS)
    if isinstance(batch, (tuple, list)) and batch:
        *inputs, targets = batch if len(batch) > 1 else (*batch, None)
        return inputs[0] if len(inputs) == 1 else tuple(inputs), targets
    empty = " without inputs" if isinstance(batch, (Mapping, tuple, list)) else ""
    raise InputError(
        f"a batch is a {type(batch).__name__}{empty}; give (inputs, targets), or more inputs with the targets last, or "
        f"a dict of named inputs with {TARGETS!r}"
    )


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
