"""Make the channels between two layers equally large, before either is rounded; nothing changes in float.

What a layer gives to a rectifier may be divided by a positive number per channel, if the next layer's weights are
multiplied by it. Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv:1906.04721), sections 4.1 (equalization) and 4.1.3 (absorbing high biases). The factors there follow from the
weights alone. Where something was seen of the activation, factors that follow from it are tried as well, and those
are taken of which rounding should cost least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (0.5, 0.75, 1.0)  # of the reach of a channel is divided away
LARGEST_RATIO = 1e4  # between two divisors: what hardly ever spoke must not drown the others when it does
ENOUGH = 2.0  # times less noise is worth another graph
LEAST = 128  # values of each channel have to be seen: one sample says that channels are all constant
SIGMAS = 3.0  # below its mean a channel is taken to stay above


@dataclass(frozen=True)
class Seen:
    """What was seen of an activation, by channel; float32 [channels] each.

    Attributes:
        low, high: extremes.
        mean, energy: the mean, and the mean square.
        count: of values seen of each channel.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    energy: Tensor
    count: int

    def shifted(self, shift: Tensor) -> Seen:
        """Of the activation less ``shift``."""
        energy = self.energy - 2 * shift * self.mean + shift.square()
        return Seen(self.low - shift, self.high - shift, self.mean - shift, energy, self.count)

    @property
    def reach(self) -> Tensor:
        """The largest magnitude."""
        return torch.maximum(self.low.abs(), self.high.abs())


@dataclass(frozen=True)
class Grid:
    """How both layers and what is between them are rounded.

    Attributes:
        first, second: codes on each side of zero for their weights, such as 127; None where they stay float.
        alone: whether each output of the first, and of the second layer, has a step of its own.
        activation: number of steps that span the activation, such as 255; None where it stays float.
    """

    first: float | None
    second: float | None
    alone: tuple[bool, bool]
    activation: float | None


@dataclass(frozen=True)
class Equalized:
    """What was found: the activation becomes ``(x - shift) / divisor``, float32 [channels] each.

    ``gain`` is how many times less noise rounding should bring into what the second layer gives.
    """

    divisor: Tensor
    shift: Tensor
    gain: float


def find_equalization(
    first: Tensor, second: Tensor, seen: Seen | None, grid: Grid, shiftable: bool
) -> Equalized | None:
    """The divisor and shift of least noise; None where it is not :data:`ENOUGH` less, or too little was seen.

    Args:
        first: float32 [channels, k], the weights that each channel is the sum of.
        second: float32 [groups, outputs, channels / groups, taps], the weights that read the channels.
        seen: of the activation between them, over calibration data; None without data.
        grid: how all of it is rounded.
        shiftable: a constant may be moved from the first layer's bias to the second's.
    """
    if seen is not None and seen.count < LEAST:
        return None
    channels = len(first)
    none = torch.zeros(channels)
    shift = none if seen is None or not shiftable else absorbed(seen)
    after = seen if seen is None else seen.shifted(shift)
    plain = _noise(torch.ones(channels), first, second, seen, grid)
    divisors = [torch.ones(channels), *_divisors(first, second, after)]
    noises = [_noise(one, first, second, after, grid) for one in divisors]
    best = min(range(len(divisors)), key=noises.__getitem__)
    if not noises[best] * ENOUGH <= plain or plain <= 0:
        return None
    return Equalized(divisors[best], shift, plain / max(noises[best], 1e-30))


def balance(first: Tensor, second: Tensor) -> Tensor:
    """The divisor, float32 [channels], with which both layers' weights of a channel reach equally far (eq. 11).

    1 for channels that either of the layers has only zeros for: there is nothing to balance.

    Args:
        first, second: as for :func:`find_equalization`.
    """
    made, read = first.abs().amax(dim=1), second.abs().amax(dim=(1, 3)).reshape(-1)
    return _bounded((made / read.clamp(min=1e-30)).sqrt(), (made > 0) & (read > 0))


def absorbed(seen: Seen) -> Tensor:
    """What every channel exceeds, float32 [channels], and the next layer's bias may take (eq. 15).

    It is no more than was ever seen, and no more than the mean less three standard deviations.
    """
    spread = (seen.energy - seen.mean.square()).clamp(min=0).sqrt()
    return torch.minimum(seen.low, seen.mean - SIGMAS * spread).clamp(min=0)


def _divisors(first: Tensor, second: Tensor, seen: Seen | None) -> Iterator[Tensor]:
    yield balance(first, second)
    if seen is not None:
        for strength in STRENGTHS:
            yield _bounded(seen.reach.pow(strength), seen.reach > 0)


def _bounded(divisor: Tensor, alive: Tensor) -> Tensor:
    """With a geometric mean of 1 over the channels that are alive, and 1 for the others."""
    if not alive.any():
        return torch.ones_like(divisor)
    divisor = torch.maximum(divisor, divisor[alive].max() / LARGEST_RATIO)
    return torch.where(alive, divisor / divisor[alive].log().mean().exp(), 1.0)


def _noise(divisor: Tensor, first: Tensor, second: Tensor, seen: Seen | None, grid: Grid) -> float:
    """Mean square that rounding brings into the second layer's outputs, all added up.

    A step rounds to within half of itself, evenly, so it brings a twelfth of its square.
    """
    groups, _, each, taps = second.shape
    made = first / divisor[:, None]
    read = second * divisor.reshape(groups, 1, each, 1)
    received = read.square().sum(dim=(1, 3)).reshape(-1)  # what a channel's noise is multiplied with
    # Without data the first layer's inputs are taken to be of one size and to have nothing to do with each other.
    energy = first.square().sum(dim=1) if seen is None else seen.energy
    total = 0.0
    if grid.activation is not None and seen is not None:
        span = float((seen.high / divisor).amax().clamp(min=0) - (seen.low / divisor).amin().clamp(max=0))
        total += (span / grid.activation) ** 2 / 12 * float(received.sum())
    if grid.first is not None:
        largest = made.abs().amax(dim=1) if grid.alone[0] else made.abs().amax().expand(len(made))
        size = float((energy / first.square().sum(dim=1).clamp(min=1e-30)).mean())  # of an input, squared
        total += float(((largest / grid.first).square() / 12 * size * made.shape[1] * received).sum())
    if grid.second is not None:
        largest = (
            read.abs().amax(dim=(2, 3)) if grid.alone[1] else read.abs().amax().expand(groups, read.shape[1])
        )
        heard = (energy / divisor.square()).reshape(groups, each).sum(dim=1) * taps
        total += float(((largest / grid.second).square() / 12 * heard[:, None]).sum())
    return total


def grouped(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight [m, channels / groups, *taps] as [groups, m / groups, channels / groups, taps]."""
    outputs, each = weight.shape[:2]
    groups = channels // each
    return weight.reshape(groups, outputs // groups, each, -1)


def seen_of(examples: Tensor, axis: int) -> Seen:
    """What some samples of an activation, float32 of any shape, show of its channels, which lie along ``axis``."""
    flat = examples.movedim(axis, 0).flatten(1)
    return Seen(
        flat.amin(dim=1), flat.amax(dim=1), flat.mean(dim=1), flat.square().mean(dim=1), flat.shape[1]
    )
