"""Round a weight column by column, and let the columns not yet rounded make up for the error.

Source: Frantar et al. 2023, "GPTQ" (arXiv:2210.17323), with columns in order of falling importance. Where the
layer's bias is written anew it absorbs the mean error, and the covariance takes the place of the second moment.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 32  # columns whose updates are applied one by one; what is right of them waits for a matrix product
FLOOR = 0.01  # of the mean energy of inputs is added to each, where nothing tells how much
FLOORS = (0.001, 0.01, 0.1)  # are tried otherwise
TRIED = 32  # outputs tell which of them is best
TOGETHER = 1e-5  # of an input's energy is what float32 may make of nothing


def round_with_compensation(weight: Tensor, moment: Tensor, scale: Tensor, qmin: int, qmax: int) -> Tensor:
    """Integer codes of :func:`compensated`, float32 [m, k], in ``qmin..qmax``; the other arguments are its own."""
    return compensated(weight, moment, scale, lambda places: places.round_().clamp_(qmin, qmax))


def compensated(weight: Tensor, moment: Tensor, scale: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """Levels that keep the output of a linear layer close, rather than each weight.

    Args:
        weight: float32 [m, k], a row per output.
        moment: float32 [k, k], second moment of the inputs, positive definite (see :func:`damped_moment`).
        scale: float32, broadcasts to [m, k]: the steps, one for each row, [m, 1], or others for groups of its columns.
        nearest: the level nearest to each of some numbers of steps, float32 of any shape, which it may overwrite.

    Returns:
        float32 [m, k], levels, in steps; of each row, those rounded to nearest where they do no worse. Weights that are
        zero stay as near to it as a level is: somebody pruned them.
    """
    scale = scale.expand_as(weight)
    order = torch.argsort(moment.diagonal() * scale.square().mean(dim=0), descending=True)
    factor = _inverse_factor(moment[order][:, order])
    left = weight[:, order].T.contiguous()  # [k, m]: a column of the weight is a row here
    steps = scale[:, order].T.contiguous()
    present = left != 0
    levels = torch.empty_like(left)
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = torch.empty_like(left[start:end])
        for i in range(start, end):
            levels[i] = nearest(left[i] / steps[i] * present[i])
            errors[i - start] = (left[i] - levels[i] * steps[i]) / factor[i, i]
            left[i + 1 : end] -= factor[i, i + 1 : end, None] * errors[i - start]
        left[end:] -= factor[start:end, end:].T @ errors
    rounded = torch.empty_like(levels)
    rounded[order] = levels
    plain = nearest(weight / scale)
    found = rounded.T.contiguous()
    better = _error(found * scale - weight, moment) < _error(plain * scale - weight, moment)
    return torch.where(better[:, None], found, plain)


def _error(difference: Tensor, moment: Tensor) -> Tensor:
    """Mean square that each row of differences, [m, k], brings into the output: [m]."""
    return ((difference @ moment) * difference).sum(dim=1)


def _inverse_factor(matrix: Tensor) -> Tensor:
    """The upper triangular U with ``U.T @ U`` the inverse of ``matrix``, without inverting the whole.

    With its order reversed, Cholesky gives ``matrix = R @ R.T`` for an upper triangular R; then U is R's inverse.
    """
    upper = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(upper, torch.eye(len(matrix), device=matrix.device), upper=True)


def equal_rows(inputs: Tensor) -> Tensor:
    """Rows, float32 [n, k], brought to the same energy, that of their mean: no token outweighs the others."""
    energy = inputs.square().sum(dim=1, keepdim=True)
    return inputs * (energy.mean() / energy.clamp(min=1e-30)).sqrt()


def find_floor(
    weight: Tensor, inputs: Tensor, scale: Tensor, codes: tuple[int, int], noise: float, centered: bool
) -> float:
    """How much damping rounds best for inputs that it was not found on: a share of their mean energy.

    Rounded against every other row of the inputs, some of the weight's rows are judged by the rest.

    Args:
        weight, scale: as for :func:`compensated`.
        inputs: float32 [n, k], rows.
        codes: the lowest and the highest.
        noise, centered: as for :func:`damped_moment`.
    """
    energy = float(inputs.square().mean())
    if len(inputs) < 4 or noise >= max(FLOORS) * energy:
        return FLOOR
    halves = [second_moment(inputs[start::2], centered) for start in (0, 1)]
    return best_floor(
        weight, (halves[0], halves[1]), scale, lambda places: places.round_().clamp_(*codes), noise
    )


def best_floor(
    weight: Tensor,
    halves: tuple[Tensor, Tensor],
    scale: Tensor,
    nearest: Callable[[Tensor], Tensor],
    noise: float = 0.0,
) -> float:
    """The one of ``FLOORS`` with which rows of a weight that are rounded against half of the inputs serve the other.

    Args:
        weight, scale, nearest: as for :func:`compensated`.
        halves: float32 [k, k], second moments.
        noise: as for :func:`damped_moment`.
    """
    every = max(1, len(weight) // TRIED)
    some, steps = weight[::every], scale.expand_as(weight)[::every]
    own, other = halves

    def error(floor: float) -> float:
        found = compensated(some, damped(own.clone(), noise, floor), steps, nearest)
        return float(_error(found * steps - some, other).sum())

    return min(FLOORS, key=error)


def damped_moment(inputs: Tensor, noise: float, centered: bool, floor: float = FLOOR) -> Tensor:
    """Second moment of input rows, float32 [n, k], plus the variance that rounding the inputs adds to each.

    ``centered`` leaves the mean out: the layer's bias takes what error it brings. ``noise`` is that variance (step
    squared over 12). A ``floor``, a share of the mean energy, keeps the matrix positive definite where inputs are
    constant or there are fewer rows than columns.
    """
    return damped(second_moment(inputs, centered), noise, floor)


def second_moment(inputs: Tensor, centered: bool) -> Tensor:
    """Second moment of rows, float32 [n, k], about their mean or about zero: float32 [k, k]."""
    if centered:
        inputs = inputs - inputs.mean(dim=0)
    return inputs.T @ inputs / len(inputs)


def undetermined(moment: Tensor) -> bool:
    """Whether inputs of that second moment, float32 [k, k], hang together, so that it is not positive definite.

    For all that float32 knows of it, and leaving out of account inputs that are always zero.
    """
    size = moment.diagonal().clamp(min=0).sqrt()
    some = size > 1e-6 * size.max()
    shares = moment[some][:, some] / size[some] / size[some][:, None]
    shares.diagonal().sub_(TOGETHER)
    return int(torch.linalg.cholesky_ex(shares).info) > 0


def damped(moment: Tensor, noise: float = 0.0, floor: float = FLOOR) -> Tensor:
    """A second moment, float32 [k, k], in place: plus ``noise`` on its diagonal, or a floor where that is more.

    ``floor`` is a share of the mean of the diagonal. Where the matrix is still not positive definite, for all that
    float32 knows of it, ten times as much is added until it is.
    """
    least = floor * float(moment.diagonal().mean()) + 1e-12
    added = max(noise, least)
    moment.diagonal().add_(added)
    while int(torch.linalg.cholesky_ex(moment).info) and added < float("inf"):
        moment.diagonal().add_(9 * added)
        added *= 10
    return moment
