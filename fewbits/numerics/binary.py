"""One and two bits with closed-form scales.

Functions here take Rows (channels, groups, length) and give scales (channels, groups, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbits.numerics.affine import SMALLEST_SCALE
from fewbits.numerics.rows import Points, Rows

SMALLEST_POSITIVE = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps


def binary_scale(rows: Rows) -> Tensor:
    """The mean magnitude, which is the best scale for the codes sign(x); 0 for a row of zeros.

    Source: Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279, equation 6.
    """
    low, high = rows.ends
    # The mean of a few of the smallest numbers and many zeros would round to zero.
    least = torch.where((low != 0) | (high != 0), SMALLEST_POSITIVE, 0.0)
    return torch.maximum(_mean(rows), least)


def binary_codes(values: Tensor) -> Tensor:
    """-1 for negative values and +1 for the others, zero of either sign included."""
    return (values >= 0).to(torch.int8).mul_(2).sub_(1)


def ternary_threshold(rows: Rows) -> Tensor:
    """0.7 times the mean magnitude: smaller magnitudes become 0.

    Source: Li, Liu and Zhang 2016, Ternary Weight Networks, arXiv:1605.04711, equation 6.
    """
    return 0.7 * _mean(rows)


def best_ternary_threshold(rows: Rows) -> Tensor:
    """The threshold of least squared error: keeping the m largest magnitudes explains (their sum)^2 / m."""
    magnitudes = Points(rows.points.values.abs(), rows.points.weights)
    size, kept = (part.flip(-1) for part in magnitudes.ascending())
    kept = kept.double()
    unit = size[..., :1].double().clamp(min=SMALLEST_SCALE)
    explained = (size / unit * kept).cumsum(-1).square_() / kept.cumsum(-1)
    # Between equal magnitudes no threshold fits.
    same = torch.nn.functional.pad(size[..., 1:] == size[..., :-1], (0, 1))
    best = explained.masked_fill_(same, -1.0).argmax(dim=-1, keepdim=True)
    return torch.nn.functional.pad(size, (0, 1)).gather(-1, best + 1)


def ternary_scale(rows: Rows, threshold: Tensor) -> Tensor:
    """The mean magnitude above the threshold, the best scale for it; 1 where there is none."""
    mean = _mean_magnitude(rows, threshold)
    return torch.where(mean > 0, mean.clamp(min=SMALLEST_SCALE), 1.0)


def ternary_codes(values: Tensor, threshold: Tensor) -> Tensor:
    """The sign of values whose magnitude is above the threshold, 0 for the others."""
    return (values > threshold).to(torch.int8).sub_((values < -threshold).to(torch.int8))


def _mean(rows: Rows) -> Tensor:
    return _mean_magnitude(rows, torch.full_like(rows.ends[0], -1.0))


def _mean_magnitude(rows: Rows, above: Tensor) -> Tensor:
    total = torch.zeros_like(above, dtype=torch.float64)
    count = torch.zeros_like(total)
    for part in rows.parts:
        size = rows.part(part).abs()
        kept = size > above
        total += (size * kept).sum(dim=-1, keepdim=True, dtype=torch.float64)
        count += kept.sum(dim=-1, keepdim=True)
    return (total / count.clamp_(min=1)).float()
