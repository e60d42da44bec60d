"""Which weights to set to zero: arrays in, masks out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewbits.errors import InputError


def magnitude_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Masks that leave out the smallest of several weights taken together.

    Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks" (arXiv:1506.02626).

    Args:
        weights: of any shapes, on one device.
        sparsity: the share of all their elements to leave out, at least 0 and less than 1.

    Returns:
        For each weight a bool tensor of its shape, True where it stays. ``round(sparsity * elements)`` are False; of
        equal ones, those that come first.

    Raises:
        InputError: a sparsity out of range.
    """
    checked_sparsity(sparsity)
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    kept = torch.ones_like(sizes, dtype=torch.bool)
    kept[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = False
    parts = kept.split([weight.numel() for weight in weights])
    return [part.reshape(weight.shape) for part, weight in zip(parts, weights, strict=True)]


def n_of_m_mask(weight: Tensor, n: int, m: int, axis: int = 1) -> Tensor:
    """A mask that leaves the n largest of every m neighbours along an axis.

    Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (arXiv:2104.08378), for 2 of 4 along the
    inputs of a layer.

    Args:
        weight: of any shape; the axis is a multiple of ``m`` long.
        n, m: how many stay, of how many.
        axis: of the inputs; 1 in PyTorch's layout.

    Returns:
        A bool tensor of the weight's shape, True where it stays; of equal ones, those that come first.

    Raises:
        InputError: n and m that are no pattern, or that do not fit the axis.
    """
    if not 0 < n < m:
        raise InputError(f"{n}:{m} is no pattern; of every M neighbours N stay, 0 < N < M, as in 2:4")
    if weight.shape[axis] % m:
        raise InputError(
            f"axis {axis} of {list(weight.shape)} is not a multiple of {m} long, as {n}:{m} needs"
        )
    rows = weight.detach().abs().movedim(axis, -1)
    groups = rows.reshape(*rows.shape[:-1], -1, m)
    order = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True)
    return kept.reshape(rows.shape).movedim(-1, axis).contiguous()


def gradual_sparsity(done: float, final: float, begin: float, end: float) -> float:
    """The share to leave out when part of the training is done: fast at first, then ever slower.

    Source: Zhu & Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878), equation 1, from nothing on.

    Args:
        done: the part of the training behind us, 0 to 1.
        final: the share at the end.
        begin, end: between which parts it grows.
    """
    if done >= end:
        return final
    if done <= begin:
        return 0.0
    return final * (1 - (1 - (done - begin) / (end - begin)) ** 3)


def checked_sparsity(sparsity: float) -> None:
    """Raises InputError where it is not a share of elements that leaves some."""
    if not 0 <= sparsity < 1:
        raise InputError(
            f"sparsity is {sparsity}; give the share of weights to set to zero, from 0 to below 1"
        )
