"""A module's weights as codes, steps, codebooks, norms and biases learned together against data.

They learn until the module gives what it gave in float, in its outputs and behind each of its repeated blocks. No
labels are needed. Source: Liu et al. 2023, "LLM-QAT" (arXiv:2305.17888) for learning from the float model alone; Esser
et al. 2020 (arXiv:1902.08153) for steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbits.methods.learned import Learned, LearnedBookInCells, LearnedLevels, LearnedShift, LearnedWeight
from fewbits.methods.reconstruction import Spent, copied, descent, restore
from fewbits.modules.compensate import TABLES, Met, has_book
from fewbits.modules.running import Call, Progress, State, floats_of, precision
from fewbits.numerics import QTensor
from fewbits.numerics.levels import decode_levels

JUDGED = 4  # calls tell whether learning has helped
LONG = 5.0  # seconds of learning are announced


@dataclass(frozen=True)
class Learnt:
    """What came of it: weights by name as codes, and parameters that stay floats, as they are now."""

    codes: Mapping[str, QTensor]
    floats: Mapping[str, Tensor]


def learned(
    state: State,
    met: Met,
    given: Sequence[Call],
    spent: Spent,
    *,
    fixed: Iterable[str] = (),
    narrow: bool,
    generator: torch.Generator,
    progress: Progress,
) -> Learnt:
    """Better codes for a module's weights, and norms and biases with them; as they were where that is no better.

    Args:
        state: the module with the codes that learning begins with. Those of 8 bits and of formats without known levels
            stay as they are, and so do tables larger than any other weight: most of their rows would learn nothing.
        met: what was found of the data while rounding.
        given: calls of forward.
        spent: on learning.
        fixed: weights that stay as they are.
        narrow: compute in bfloat16 while learning, which some CPUs do several times as fast.
        generator: of the order of calls.
        progress: called with a stage, what is done of it and how much there is; where learning takes more than
            some seconds, first with how long.
    """
    weights = _learned_weights(state, met, frozenset(fixed))
    shifts = _learned_floats(state)
    everything: list[Learned] = [*weights.values(), *shifts.values()]
    order: list[int] = []

    def replaced() -> dict[str, Tensor]:
        return {**state.now, **{name: one(state.floats[name]) for name, one in (weights | shifts).items()}}

    with _Blocks(state) as blocks:

        def loss(call: Call, narrow: bool) -> Tensor:
            with torch.no_grad(), precision(narrow):
                target = blocks.run(call, state.floats)
            with precision(narrow):
                found = blocks.run(call, replaced())
            return torch.stack(
                [_distance(*pair) for pair in zip(found, target, strict=True) if pair[1]]
            ).mean()

        def next_loss() -> Tensor:
            if not order:
                order.extend(torch.randperm(len(given), generator=generator).tolist())
            return loss(given[order.pop()], narrow)

        def judged() -> float:
            with torch.no_grad():
                return sum(float(loss(call, narrow=False)) for call in given[:: -(-len(given) // JUDGED)])

        before, start = judged(), copied(everything)
        with torch.enable_grad():
            clock = [time.perf_counter()]
            for number, _ in enumerate(descent(next_loss, everything, spent), 1):
                clock.append(time.perf_counter())
                seconds = (clock[-1] - clock[-2]) * (spent.steps - number)
                if number == 2 and seconds > LONG:  # the first step also makes what all of them need
                    progress(f"learning takes about {seconds:.0f} s", number, spent.steps)
                progress("learn", number, spent.steps)
        if not judged() < before:
            restore(everything, start)
    with torch.no_grad():
        codes = {**state.codes, **{name: one.rounded() for name, one in weights.items()}}
        floats = {name: one.values.detach().to(state.floats[name].dtype) for name, one in shifts.items()}
    return Learnt(codes, floats)


def _learned_weights(
    state: State, met: Met, fixed: frozenset[str]
) -> dict[str, LearnedWeight | LearnedLevels]:
    tables = {name for name in state.codes if met.by.get(name) in TABLES}
    largest = max((state.floats[name].numel() for name in state.codes if name not in tables), default=0)
    found: dict[str, LearnedWeight | LearnedLevels] = {}
    for name, q in state.codes.items():
        if name in fixed or (name in tables and state.floats[name].numel() > largest):
            continue
        levels = levels_of(q)
        if levels is not None:
            found[name] = LearnedLevels(state.floats[name].float(), q, levels)
        elif has_book(q):
            found[name] = LearnedBookInCells(state.floats[name].float(), q)
    return found


def _learned_floats(state: State) -> dict[str, LearnedShift]:
    """Gains and biases."""
    found = {}
    for name, value in state.floats.items():
        if name not in state.codes and value.dim() == 1 and value.is_floating_point():
            unit = value.float().square().mean().sqrt().clamp(min=1e-3).expand_as(value)
            found[name] = LearnedShift(value.float(), unit)
    return found


class _Blocks:
    """What a module gives, and what each of its repeated blocks gives on the way."""

    def __init__(self, state: State) -> None:
        self._state, self._stack = state, ExitStack()
        self._seen: list[Tensor] = []
        self._lists = [one for one in state.module.modules() if isinstance(one, nn.ModuleList)]

    def __enter__(self) -> _Blocks:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._seen.extend(floats_of(output)[:1])

        for one in self._lists:
            for block in one:
                self._stack.callback(block.register_forward_hook(keep).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, call: Call, replaced: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Float tensors: of the blocks in the order of their runs, and the outputs."""
        self._seen = []
        outputs = floats_of(self._state.run(call, replaced))
        return self._seen, outputs


def levels_of(q: QTensor) -> Tensor | None:
    """The ascending levels, in steps, of the codes of a fixed codebook or of a few bits without zero points."""
    row = q.qtype
    if (
        q.scale is None
        or q.zero_point is not None
        or q.free_zero_point is not None
        or q.tensor_scale is not None
    ):
        return None
    if row.kind == "int" and row.bits < 8:
        return torch.arange(row.qmin, row.qmax + 1, dtype=torch.float32, device=q.codes.device)
    if row.levels is not None:
        return decode_levels(torch.arange(len(row.levels), device=q.codes.device), row)
    return None


def _distance(found: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Energy of each difference, relative to the target's, on average."""
    pairs = [(a.float(), b.float()) for a, b in zip(found, target, strict=True)]
    return torch.stack([(a - b).square().sum() / b.square().sum().clamp(min=1e-30) for a, b in pairs]).mean()
