"""Batch norms of a module whose weights are codes: their statistics, estimated again on what the codes give.

Source: Sun et al. 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks" (NeurIPS),
section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewbits.modules.inputs import calls
from fewbits.modules.running import Call, floats_of, quiet

CALLS = 32  # of the data are run at most


@dataclass(frozen=True)
class Reestimated:
    """How it went: of how many batch norms, and the outputs' squared error with what they had and with what is new.

    ``after`` is None where nothing could be estimated: a call has a single value for a channel.
    """

    norms: int
    before: float
    after: float | None

    def __bool__(self) -> bool:
        """Whether statistics are new."""
        return self.after is not None and self.after < self.before


def reestimate(original: nn.Module, coded: nn.Module, data: Any) -> Reestimated | None:
    """:func:`reestimated` on any data; see :func:`fewbits.modules.inputs.calls`."""
    return reestimated(original, coded, [call for call, _ in zip(calls(data), range(CALLS), strict=False)])


@torch.no_grad()
def reestimated(original: nn.Module, coded: nn.Module, given: Sequence[Call]) -> Reestimated | None:
    """Estimate the running mean and variance of every batch norm anew, in place, as the average over calls.

    They stay as they were where the module's outputs are no closer to the original's for it, and where a call has a
    single value for a channel, which has no variance.

    Args:
        original: in float.
        coded: the same with codes for weights; its modes are left as they were.
        given: calls of forward, of which the first CALLS are run.

    Returns:
        Whether they are new, and why; None where there are none.
    """
    norms = [one for one in coded.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    if not norms:
        return None
    given = given[:CALLS]
    with quiet(original), quiet(coded):
        expected = [_run(original, call) for call in given]
        before = _error(expected, [_run(coded, call) for call in given])
        kept = [(_buffers(one), one.momentum) for one in norms]
        after = None
        try:
            for one in norms:
                one.reset_running_stats()
                one.momentum, one.training = None, True
            for call in given:
                _run(coded, call)
            estimated = True
        except ValueError:  # a single value for a channel
            estimated = False
        for one, (_, momentum) in zip(norms, kept, strict=True):
            one.momentum, one.training = momentum, False
        if estimated:
            after = _error(expected, [_run(coded, call) for call in given])
        found = Reestimated(len(norms), before, after)
        if found:
            return found
        for one, (buffers, _) in zip(norms, kept, strict=True):
            for name, value in buffers.items():
                getattr(one, name).copy_(value)
        return found


def _buffers(norm: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in norm.named_buffers(recurse=False)}


def _run(module: nn.Module, call: Call) -> list[Tensor]:
    return [one.float() for one in floats_of(module(*call[0], **call[1]))]


def _error(expected: list[list[Tensor]], got: list[list[Tensor]]) -> float:
    pairs = [pair for a, b in zip(expected, got, strict=True) for pair in zip(a, b, strict=True)]
    return sum(float((a - b).square().sum()) for a, b in pairs)
