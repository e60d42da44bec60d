"""Batch norms of a module whose weights are codes: their statistics, estimated again on what the codes give.

Source: Sun et al. 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks" (NeurIPS),
section 4.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from fewbits.modules.inputs import calls

CALLS = 32  # of the data are run at most


@torch.no_grad()
def reestimate(original: nn.Module, coded: nn.Module, data: Any) -> bool:
    """Estimate the running mean and variance of every batch norm anew, in place, as the average over calls.

    They stay as they were where the module's outputs are no closer to the original's for it, and where a call has a
    single value for a channel, which has no variance.

    Args:
        original: in float.
        coded: the same with codes for weights; its modes are left as they were.
        data: see :func:`fewbits.modules.inputs.calls`.

    Returns:
        Whether they are new.
    """
    norms = [one for one in coded.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    if not norms:
        return False
    given = [call for call, _ in zip(calls(data), range(CALLS), strict=False)]
    with _mode(original), _mode(coded):
        expected = [_run(original, call) for call in given]
        before = _error(expected, [_run(coded, call) for call in given])
        kept = [(_buffers(one), one.momentum) for one in norms]
        try:
            for one in norms:
                one.reset_running_stats()
                one.momentum, one.training = None, True
            for call in given:
                _run(coded, call)
            after = None
        except ValueError:  # a single value for a channel
            after = before
        for one, (_, momentum) in zip(norms, kept, strict=True):
            one.momentum, one.training = momentum, False
        if after is None:
            after = _error(expected, [_run(coded, call) for call in given])
        if after < before:
            return True
        for one, (buffers, _) in zip(norms, kept, strict=True):
            for name, value in buffers.items():
                getattr(one, name).copy_(value)
        return False


def _buffers(norm: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in norm.named_buffers(recurse=False)}


@contextmanager
def _mode(module: nn.Module) -> Iterator[None]:
    """In eval, each part of it; as they were behind."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _run(module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    leaves = pytree.tree_leaves(module(*call[0], **call[1]))
    return [leaf.float() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _error(expected: list[list[Tensor]], got: list[list[Tensor]]) -> float:
    pairs = [pair for a, b in zip(expected, got, strict=True) for pair in zip(a, b, strict=True)]
    return sum(float((a - b).square().sum()) for a, b in pairs)
