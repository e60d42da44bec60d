"""Protect the weights that large activations meet, where weights alone are rounded.

A weight counts by what it is multiplied with. Multiplied by ``s`` before it is rounded, and its activation divided by
``s``, it keeps more of itself, as long as it does not widen its group's range.
Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization" (arXiv:2306.00978), section 3.2: ``s`` is the mean
magnitude of the channel to the power of a strength, which is searched for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STRENGTHS = tuple(k / 10 for k in range(1, 11))
MAX_ROWS = 512  # judge a divisor


def find_protection(
    rows: Tensor, weights: Sequence[Tensor], round_weight: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """The divisor of the activation, float32 [k], with the least error of the layers' outputs; None for all ones.

    Every layer counts by its error relative to the energy of its outputs.

    Args:
        rows: float32 [n, k], some rows of the activation that all of the layers read.
        weights: float32 [k, m] each.
        round_weight: gives a weight [k, m] as it is after rounding.
    """
    rows = rows[:: -(-len(rows) // MAX_ROWS)]
    targets = [rows @ weight for weight in weights]
    size = rows.abs().mean(dim=0)
    if not size.any():
        return None
    size = size.clamp(min=1e-4 * float(size.max()))

    def error(divisor: Tensor | None) -> float:
        total = 0.0
        for weight, target in zip(weights, targets, strict=True):
            if divisor is None:
                got = rows @ round_weight(weight)
            else:
                got = (rows / divisor) @ round_weight(weight * divisor[:, None])
            total += float((got - target).square().sum() / target.square().sum().clamp(min=1e-30))
        return total

    divisors = [None, *(_centered(size.pow(strength)) for strength in STRENGTHS)]
    errors = [error(divisor) for divisor in divisors]
    return divisors[min(range(len(errors)), key=errors.__getitem__)]


def _centered(divisor: Tensor) -> Tensor:
    """With the geometric mean of its ends at 1."""
    return divisor / torch.sqrt(divisor.max() * divisor.min())
