"""Statistics of batch norms behind rounded layers.

Source: Sun et al. 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks" (NeurIPS),
section 4.3. There the statistics are those of samples; here training's are kept, and moved as samples' are by rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1 / 16


def moved_statistics(exact: Tensor, rounded: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, float32 [channels], moved as far as rounding moves those of some samples.

    Args:
        exact, rounded: float32 [n, channels, ...], what the norm reads in float, and behind rounded layers.
        mean, variance: float32 [channels], as trained. A variance stays where the samples have none, and falls to
            LEAST of itself at most: what is next to constant for some samples is not blown up for others.
    """
    float_variance, float_mean = _statistics(exact)
    rounded_variance, rounded_mean = _statistics(rounded)
    ratio = torch.where(float_variance > 0, rounded_variance / float_variance, 1)
    return mean + rounded_mean - float_mean, variance * ratio.clamp(min=LEAST)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.var_mean(x.movedim(1, 0).flatten(1), dim=1, correction=0)
