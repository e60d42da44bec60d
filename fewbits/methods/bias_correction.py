"""Take the mean error that rounded weights leave in a layer's output out of its bias.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv:1906.04721), section 4.2 and appendix C: analytically, from what a batch norm says of the layer's input, or
empirically, from what the float and the rounded network give.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal


def mean_of_clipped(mean: Tensor, std: Tensor, low: float, high: float) -> Tensor:
    """The mean of a normal variable that is held between two ends, float32 in the shape of ``mean``.

    Args:
        mean, std: of the variable before, any shape; the spread may be 0.
        low, high: the ends, which may be infinite.
    """
    mean, std = mean.double(), std.double().clamp(min=1e-12)
    standard = Normal(torch.zeros((), dtype=torch.float64), 1.0)

    def below(end: float) -> tuple[Tensor, Tensor, Tensor]:
        """The density and the probability below an end, and what is held there."""
        if end in (float("inf"), -float("inf")):
            nothing = torch.zeros_like(mean)
            return nothing, nothing + (end > 0), nothing
        place = (end - mean) / std
        share = standard.cdf(place)
        return standard.log_prob(place).exp(), share, end * (share if end == low else 1 - share)

    (left, under, held_low), (right, until, held_high) = below(low), below(high)
    return (std * (left - right) + mean * (until - under) + held_low + held_high).float()


def analytic_shift(weight: Tensor, rounded: Tensor, mean: Tensor) -> Tensor:
    """What to add to the bias, float32 [groups * outputs], so that rounding leaves the mean output as it was.

    Args:
        weight, rounded: float32 [groups, outputs, channels / groups, taps], before and after.
        mean: float32 [channels] of the input, as it is everywhere (padding is left out of account).
    """
    groups, _, each, _ = weight.shape
    return ((weight - rounded).sum(dim=3) @ mean.reshape(groups, each, 1)).reshape(-1)


def empirical_shift(exact: Tensor, rounded: Tensor, axis: int) -> Tensor:
    """The same, float32 [channels], from what a layer gives before and after.

    Args:
        exact, rounded: float32 of any shape, with channels along ``axis``.
    """
    return (exact - rounded).movedim(axis, 0).flatten(1).mean(dim=1)
