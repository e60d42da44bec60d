"""Learn the roundings of one part of a network so that it gives what the float part gave.

A part is whatever its caller can run: a layer, a residual block, half a transformer layer, or all of the network. It
reads what the quantized parts before it give, mixed at random with what the float ones gave, and its target is the
output of its float self. Sources: Nagel et al. 2020, "Up or Down? Adaptive Rounding" (arXiv:2004.10568) for learning
roundings layer by layer; Li et al. 2021, "BRECQ" (arXiv:2102.05426) for blocks; Wei et al. 2022, "QDrop"
(arXiv:2203.05740) for mixing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbits.methods.learned import RATES, Learned

Values = Mapping[str, Tensor]
Part = Callable[[Values], Tensor]
"""Runs a part on its inputs, by name, first axis = samples; gives its output in float32 with gradients."""

MIXED = 0.5  # of the inputs are those of the float network
JUDGED = 256  # samples tell whether what was learned is better than what was there


@dataclass(frozen=True)
class Material:
    """What a part learns from; every array has the samples along its first axis.

    Attributes:
        exact: its inputs in the float network, by name.
        rounded: the same as the quantized parts before it give them.
        target: its output in the float network.
    """

    exact: Values
    rounded: Values
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def mixed(self, chosen: Tensor, generator: torch.Generator) -> Values:
        """Inputs of these samples, each number of which is the float network's with probability ``MIXED``."""
        found = {}
        for name, rounded in self.rounded.items():
            exact, rounded = self.exact[name], rounded[chosen]
            if exact is not self.rounded[name]:
                taken = torch.empty_like(rounded).uniform_(generator=generator).lt_(MIXED)
                rounded = torch.lerp(
                    rounded, exact[chosen], taken
                )  # choosing by bools takes ten times as long
            found[name] = rounded
        return found


@dataclass(frozen=True)
class Spent:
    """How much a part learns: steps of Adam, samples a step, and how fast against the usual rates."""

    steps: int
    batch: int = 32
    pace: float = 1.0


def reconstruct(
    part: Part, learned: Sequence[Learned], material: Material, spent: Spent, generator: torch.Generator
) -> tuple[float, float]:
    """Learn, in place, what lies in ``learned``; undone where the part is no better for it.

    Returns:
        The error before and after: energy of the difference from the target relative to the target's, on inputs from
        the quantized parts.
    """
    before = _error(part, material)
    if not learned:
        return before, before
    start = copied(learned)
    for _ in _descent(part, learned, material, spent, generator):
        pass
    after = _error(part, material)
    if after < before:
        return before, after
    restore(learned, start)
    return before, before


def seconds(part: Part, learned: Sequence[Learned], material: Material, spent: Spent) -> float:
    """How long :func:`reconstruct` will take, by one step of it behind another; nothing is changed."""
    if not learned:
        return 0.0
    start = copied(learned)
    steps = _descent(part, learned, material, spent, torch.Generator())
    next(steps, None)
    begin = time.perf_counter()
    next(steps, None)
    each = time.perf_counter() - begin
    restore(learned, start)
    return each * spent.steps


def _descent(
    part: Part, learned: Sequence[Learned], material: Material, spent: Spent, generator: torch.Generator
) -> Iterator[None]:
    """Steps on what the part gives for samples taken at random."""
    energy = material.target.square().mean().clamp(min=1e-30)

    def loss() -> Tensor:
        chosen = torch.randint(len(material), (min(spent.batch, len(material)),), generator=generator)
        output = part(material.mixed(chosen, generator))
        return (output - material.target[chosen]).square().mean() / energy

    return descent(loss, learned, spent)


def descent(loss: Callable[[], Tensor], learned: Sequence[Learned], spent: Spent) -> Iterator[None]:
    """Steps of Adam, with rates that fall to nothing; each makes less of what ``loss`` then gives, a scalar."""
    for one in learned:
        one.begin()
    groups = [
        {
            "params": [one.parameters[kind] for one in learned if kind in one.parameters],
            "lr": rate * spent.pace,
        }
        for kind, rate in RATES.items()
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / max(spent.steps, 1))) / 2
    )
    for _ in range(spent.steps):
        found = loss()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        schedule.step()
        yield


def copied(learned: Sequence[Learned]) -> list[Tensor]:
    """What is learned, as it is now, for :func:`restore`."""
    return [parameter.detach().clone() for one in learned for parameter in one.parameters.values()]


@torch.no_grad()
def restore(learned: Sequence[Learned], start: Sequence[Tensor]) -> None:
    """As it was then."""
    parameters = (parameter for one in learned for parameter in one.parameters.values())
    for parameter, first in zip(parameters, start, strict=True):
        parameter.copy_(first)


@torch.no_grad()
def _error(part: Part, material: Material) -> float:
    noise = signal = 0.0
    step = -(-len(material) // JUDGED)  # spread over all of them
    for chosen in torch.arange(0, len(material), step).split(32):
        target = material.target[chosen]
        output = part({name: tensor[chosen] for name, tensor in material.rounded.items()})
        noise += float((output - target).square().sum())
        signal += float(target.square().sum())
    return noise / max(signal, 1e-30)
