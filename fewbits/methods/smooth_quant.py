"""Move activation outliers into the weights that meet them, before both are rounded.

A linear layer ``x @ w`` equals ``(x / s) @ (s * w)`` for any positive ``s`` per input channel. Where a few channels
of ``x`` are much larger than the others, dividing them by ``s`` makes one scale for the whole tensor serve all.
Source: Xiao et al. 2023, "SmoothQuant" (arXiv:2211.10438), eq. 4; the strength, fixed there, is searched for here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7)
MAX_ROWS = 256  # judge a strength


@dataclass(frozen=True)
class Smoothing:
    """What a search found.

    Attributes:
        divisor: float32 [k]: the activation is divided by it, the weights' rows multiplied; None for all ones.
        low, high: range of the divided activation.
        error: squared error of the layers' outputs on the rows, relative to their energy.
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
    """The strength with the least squared error of the layers' outputs.

    Args:
        rows: float32 [n, k], some rows of the activation, to judge by.
        low, high: float32 [k], the extremes of each channel over all rows, which the range has to hold.
        weights: float32 [k, m] each, of every layer that reads it.
        round_weight: gives a weight [k, m] as it is after quantization.
        levels: number of codes of the activation's format.
    """
    rows = rows[:: -(-len(rows) // MAX_ROWS)]
    target = [rows @ weight for weight in weights]
    energy = sum(float(t.square().sum()) for t in target) or 1.0

    def error(divisor: Tensor | None, rounded: Sequence[Tensor], bottom: float, top: float) -> float:
        x = fake_quantize(rows if divisor is None else rows / divisor, bottom, top, levels)
        return sum(float((x @ w - t).square().sum()) for w, t in zip(rounded, target, strict=True)) / energy

    best: Smoothing | None = None
    for strength in STRENGTHS:
        divisor = None if strength == 0 else balance(low, high, weights, strength)
        ends = (low, high) if divisor is None else (low / divisor, high / divisor)
        bottom, top = min(float(ends[0].min()), 0.0), max(float(ends[1].max()), 0.0)
        rounded = [round_weight(w if divisor is None else w * divisor[:, None]) for w in weights]
        found = Smoothing(divisor, bottom, top, error(divisor, rounded, bottom, top))
        if best is None or found.error < best.error:
            best = found
    assert best is not None
    return best


def balance(low: Tensor, high: Tensor, weights: Sequence[Tensor], strength: float) -> Tensor:
    """The divisor, float32 [k], that splits each channel's reach between activation and weights."""
    x = torch.maximum(low.abs(), high.abs()).clamp(min=1e-5)
    w = torch.stack([weight.abs().amax(dim=1) for weight in weights]).amax(dim=0).clamp(min=1e-5)
    divisor = x.pow(strength) / w.pow(1 - strength)
    return divisor / divisor.log().mean().exp()


def fake_quantize(x: Tensor, low: float, high: float, levels: int) -> Tensor:
    """``x`` rounded to ``levels`` steps between ``low`` and ``high``, zero exact; ``low <= 0 <= high``."""
    step = max((high - low) / (levels - 1), 1e-30)
    zero = round(-low / step)
    return x.div(step).round_().add_(zero).clamp_(0, levels - 1).sub_(zero).mul_(step)
