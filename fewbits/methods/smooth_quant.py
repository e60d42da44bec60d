"""Move activation outliers into the weights that meet them, before both are rounded.

A linear layer ``x @ w`` equals ``(x / s) @ (s * w)`` for any positive ``s`` per input channel. Where a few channels
of ``x`` are much larger than the others, dividing them by ``s`` makes one scale for the whole tensor serve all.
Source: Xiao et al. 2023, "SmoothQuant" (arXiv:2211.10438), eq. 4. The strength, fixed there, is searched for here, and
so is a divisor that leaves alone all channels but the outliers, which suits what comes out of a GELU better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (0.5, 0.7, 0.85, 1.0)
QUANTILES = (
    0.25,
    0.5,
    0.75,
    0.9,
    0.97,
)  # of the channels' reaches: what reaches further is divided down to it
MAX_ROWS = 512  # judge a divisor
LEAST_ROWS = 16  # of fewer, channels that happen to be small would be taken to stay so


@dataclass(frozen=True)
class Smoothing:
    """What a search found.

    Attributes:
        divisor: float32 [k]: the activation is divided by it, the weights' rows multiplied; None for all ones.
        low, high: range of the divided activation.
        error: squared error of the layers' outputs relative to their energy, the mean over the rows.
    """

    divisor: Tensor | None
    low: float
    high: float
    error: float


def find_smoothing(
    rows: Tensor,
    low: Tensor,
    high: Tensor,
    weights: Sequence[Tensor],
    round_weight: Callable[[Tensor], Tensor],
    levels: int,
) -> Smoothing:
    """The divisor with the least squared error of the layers' outputs, every row counting the same.

    (Some tokens have activations a hundred times those of others; their errors would outweigh all others.)

    Args:
        rows: float32 [n, k], some rows of the activation, to judge by.
        low, high: float32 [k], the extremes of each channel over all rows, which the range has to hold.
        weights: float32 [k, m] each, of every layer that reads it.
        round_weight: gives a weight [k, m] as it is after quantization.
        levels: number of codes of the activation's format.
    """
    rows = rows[:: -(-len(rows) // MAX_ROWS)]
    target = [rows @ weight for weight in weights]
    energy = _energy(target).clamp(min=1e-30)

    def judged(divisor: Tensor | None) -> Smoothing:
        scaled, ends, matrices = rows, (low, high), weights
        if divisor is not None:
            scaled, ends = rows / divisor, (low / divisor, high / divisor)
            matrices = [weight * divisor[:, None] for weight in weights]
        bottom, top = min(float(ends[0].min()), 0.0), max(float(ends[1].max()), 0.0)
        x = fake_quantize(scaled, bottom, top, levels)
        left = [x @ round_weight(weight) - t for weight, t in zip(matrices, target, strict=True)]
        return Smoothing(divisor, bottom, top, float((_energy(left) / energy).mean()))

    if len(rows) < LEAST_ROWS:
        return judged(None)
    tried = (judged(divisor) for divisor in (None, *_divisors(low, high, weights)))
    return min(tried, key=lambda one: one.error)


def _energy(outputs: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.square().sum(dim=1) for one in outputs]).sum(dim=0)


def _divisors(low: Tensor, high: Tensor, weights: Sequence[Tensor]) -> Iterator[Tensor]:
    for strength in STRENGTHS:
        yield balance(low, high, weights, strength)
    reach = _reach(low, high)
    for quantile in QUANTILES:
        yield (reach / torch.quantile(reach, quantile)).clamp(min=1)


def balance(low: Tensor, high: Tensor, weights: Sequence[Tensor], strength: float) -> Tensor:
    """The divisor, float32 [k], that splits each channel's reach between activation and weights."""
    largest = torch.stack([weight.abs().amax(dim=1) for weight in weights]).amax(dim=0).clamp(min=1e-5)
    divisor = _reach(low, high).pow(strength) / largest.pow(1 - strength)
    return divisor / divisor.log().mean().exp()


def _reach(low: Tensor, high: Tensor) -> Tensor:
    return torch.maximum(low.abs(), high.abs()).clamp(min=1e-5)


def fake_quantize(x: Tensor, low: float, high: float, levels: int) -> Tensor:
    """``x`` rounded to ``levels`` steps between ``low`` and ``high``, zero exact; ``low <= 0 <= high``."""
    step = max((high - low) / (levels - 1), 1e-30)
    zero = round(-low / step)
    return x.div(step).round_().add_(zero).clamp_(0, levels - 1).sub_(zero).mul_(step)
