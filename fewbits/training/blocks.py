"""Structured pruning: whole blocks are left out, and which of them is missed least."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fewbits.errors import InputError
from fewbits.modules.batch_norm import reestimate
from fewbits.training.channels import beside
from fewbits.training.loop import moved
from fewbits.training.objective import Objective, call, split, supervised


def prune_blocks(module: nn.Module, example: Any, blocks: Sequence[str]) -> nn.Module:
    """A copy of a module without some of its blocks: what went into them goes on behind them.

    Small nets spend much of their time between layers, so half the channels are rarely half the time; a residual block
    less is. Source: Chen & Zhao 2018, "Shallowing Deep Networks" (IEEE TPAMI).

    Args:
        module: it is left alone.
        example: inputs, as for :func:`prune_channels`.
        blocks: names of submodules that take one tensor and give one of the same shape.

    Raises:
        InputError: no such submodule, one that is not called, or whose output has another shape than its input.
    """
    smaller, example = copy.deepcopy(module), beside(module, example)
    for name in blocks:
        try:
            block = smaller.get_submodule(name)
        except AttributeError:
            known = ", ".join(
                found for found, part in smaller.named_modules() if found and any(part.children())
            )
            raise InputError(f"prune_blocks: there is no block {name!r}; there are {known}") from None
        shapes = _shapes_of(block, smaller, example)
        if not _fits(shapes):
            raise InputError(
                f"prune_blocks: block {name!r} has inputs and output {shapes}; only one that takes a tensor, and gives "
                "one of its shape, can be left out"
            )
        parent, _, last = name.rpartition(".")
        setattr(smaller.get_submodule(parent), last, nn.Identity())
    return smaller


def least_missed_blocks(
    module: nn.Module,
    example: Any,
    count: int,
    data: Iterable[Any],
    *,
    objective: Objective | None = None,
) -> tuple[str, ...]:
    """The blocks without which the loss is least, one after the other, each in the absence of those before it.

    Blocks are the elements of ``nn.Sequential`` and ``nn.ModuleList`` that have parts of their own, and that
    :func:`prune_blocks` can leave out. Batch norms are estimated again without them.

    Args:
        module: it is left alone.
        example: inputs, as for :func:`prune_channels`.
        count: how many.
        data: batches, as ``fit`` takes them, that were not trained on at best; all are held.
        objective: the loss; cross entropy where None.

    Returns:
        Names, for :func:`prune_blocks`.

    Raises:
        InputError: no data, or fewer blocks than asked for.
    """
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    batches = [split(moved(batch, device)) for batch in data]
    if not batches:
        raise InputError("least_missed_blocks: there is no data: the loader gave no batch")
    example, objective = beside(module, example), objective or supervised()
    able = [
        name for name in _blocks(module) if _fits(_shapes_of(module.get_submodule(name), module, example))
    ]
    if not 0 < count <= len(able):
        known = f"{len(able)} that can: {', '.join(able)}" if able else "none that can"
        raise InputError(f"least_missed_blocks: {count} blocks cannot be left out; there are {known}")

    @torch.no_grad()
    def loss(gone: Sequence[str]) -> float:
        fewer = prune_blocks(module, example, gone).eval()
        reestimate(module, fewer, [inputs for inputs, _ in batches])
        return sum(float(objective(fewer, *batch)) for batch in batches)

    gone: tuple[str, ...] = ()
    for _ in range(count):
        gone = min(((*gone, name) for name in able if name not in gone), key=loss)
    return gone


def _blocks(module: nn.Module) -> Iterator[str]:
    for name, part in module.named_modules():
        if isinstance(part, (nn.Sequential, nn.ModuleList)):
            for last, block in part.named_children():
                if any(block.children()):
                    yield f"{name}.{last}" if name else last


def _fits(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether a block takes one tensor and gives one of its shape."""
    return len(shapes) == 2 and bool(shapes[0]) and shapes[0] == shapes[1]


def _shapes_of(block: nn.Module, module: nn.Module, example: Any) -> list[list[int]]:
    """Shapes of a block's inputs and its output, in the last of its calls."""
    seen: list[list[int]] = []

    def look(_block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen[:] = [list(getattr(one, "shape", ())) for one in (*inputs, output)]

    handle, training = block.register_forward_hook(look), module.training
    try:
        with torch.no_grad():
            call(module.eval(), example)
    finally:
        handle.remove()
        module.train(training)
    return seen
