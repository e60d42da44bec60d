"""What a fit may ask of its rows: their ends, their values, or few weighted points that stand for them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewbits.numerics.layout import block_size

_CELLS = 512  # per block: cells of equal count, and as many of equal width


@dataclass(frozen=True)
class Points:
    """Values (channels, groups, points) in float32 and how many elements each stands for (None: one)."""

    values: Tensor
    weights: Tensor | None

    def total(self, terms: Tensor) -> Tensor:
        """The weighted sum over each row, (channels, groups, 1)."""
        return (terms if self.weights is None else terms * self.weights).sum(dim=-1, keepdim=True)

    def count(self) -> Tensor:
        """How many elements each row stands for, (channels, groups, 1)."""
        if self.weights is not None:
            return self.weights.sum(dim=-1, keepdim=True)
        return torch.full_like(self.values[..., :1], self.values.shape[-1])


class Sample:
    """Rows (channels, groups, length) of any floating dtype, read in float32.

    Nothing is computed before it is asked for: the whole range needs the ends alone, a search the points.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._size = block_size(rows)
        self._long = rows.shape[-1] > self._size

    @property
    def parts(self) -> list[slice]:
        """Elements of the rows that are worked on at a time."""
        length = self._rows.shape[-1]
        size = self._size if self._long else length
        return [slice(start, start + size) for start in range(0, length, size)]

    def part(self, elements: slice) -> Tensor:
        """One of the parts, (channels, groups, elements) float32."""
        return self._rows[..., elements].float() if self._long else self._whole

    @cached_property
    def _whole(self) -> Tensor:
        return self._rows.float()

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of each row, (channels, groups, 1); NaN where there is one."""
        rows = self._rows if self._long else self._whole
        return rows.amin(dim=-1, keepdim=True).float(), rows.amax(dim=-1, keepdim=True).float()

    @property
    def finite(self) -> bool:
        """Whether every value is finite."""
        low, high = self.ends
        # One sum tells, unless it overflows; then the ends are looked at.
        return math.isfinite(float((high - low).sum())) or all(
            bool(torch.isfinite(end).all()) for end in (low, high)
        )

    @cached_property
    def points(self) -> Points:
        """The values themselves; for a row longer than a block, ascending means of its cells.

        A cell is a run of sorted values within one block. Cells are cut by count, by width and ever finer
        towards both ends, or at every change of value where few values occur, which are then exact.
        """
        if not self._long:
            return Points(self._whole, None)
        values, weights = _cells(self._rows.reshape(-1), self._size)
        return Points(values.float().view(1, 1, -1), weights.float().view(1, 1, -1))


def _cells(row: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Ascending cell means and counts, float64, of one long row."""
    threads = torch.get_num_threads()
    blocks = row.split(size)
    cells = []
    with ThreadPoolExecutor(threads) as pool:
        # A few at a time: all the sorted blocks together would be a copy of the tensor.
        for start in range(0, len(blocks), threads):
            cells += [_cut(ascending) for ascending in pool.map(_sorted, blocks[start : start + threads])]
    values, order = torch.cat([means for means, _ in cells]).sort()
    weights = torch.cat([counts for _, counts in cells])[order]
    values, inverse = torch.unique_consecutive(values, return_inverse=True)
    return values, torch.zeros_like(values).index_add_(0, inverse, weights)


def _sorted(block: Tensor) -> Tensor:
    block = block.float()
    if block.device.type != "cpu":
        return block.sort().values
    return torch.from_numpy(np.sort(block.numpy()))  # on a CPU several times faster than torch's


def _cut(ascending: Tensor) -> tuple[Tensor, Tensor]:
    """Means and counts, float64, of the cells of one sorted block."""
    count = ascending.numel()
    changes = ascending[1:] != ascending[:-1]
    if int(changes.sum()) <= 2 * _CELLS:
        starts = torch.nn.functional.pad(changes.nonzero().view(-1) + 1, (1, 0))
        return ascending[starts].double(), _counts(starts, count)
    starts = _split_at_gaps(ascending, _starts(ascending))
    counts = _counts(starts, count)
    return _sums(ascending, starts) / counts, counts


def _sums(ascending: Tensor, starts: Tensor) -> Tensor:
    """The sum of each cell, float64."""
    if ascending.device.type == "cpu":  # many times faster than running sums
        return torch.from_numpy(np.add.reduceat(ascending.numpy(), starts.numpy(), dtype=np.float64))
    sums = torch.nn.functional.pad(ascending.cumsum(0, dtype=torch.float64), (1, 0))
    return sums[torch.nn.functional.pad(starts, (0, 1), value=ascending.numel())].diff()


def _counts(starts: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(starts, (0, 1), value=count).diff().double()


def _starts(ascending: Tensor) -> Tensor:
    """First elements of cells of equal count, of equal width, and of geometric sizes from both ends."""
    count, device = ascending.numel(), ascending.device
    shares = torch.arange(_CELLS, dtype=torch.float64, device=device) / _CELLS
    # Weighted ends, because their difference may overflow.
    edges = (ascending[0].double() * (1 - shares) + ascending[-1].double() * shares).float()
    near = torch.cat([torch.arange(32), (32 * 1.1 ** torch.arange(60)).long()]).to(device)
    near = near[near < count]
    widths = torch.searchsorted(ascending, edges).clamp_(max=count - 1)
    return torch.cat([(shares * count).long(), widths, near, count - 1 - near]).unique()


def _split_at_gaps(ascending: Tensor, starts: Tensor) -> Tensor:
    """Cut the widest cells once more at their largest gap, lest a mean falls between two clumps of values."""
    count = ascending.numel()
    ends = torch.nn.functional.pad(starts[1:], (0, 1), value=count)
    width = ascending[ends - 1].double() - ascending[starts].double()
    widest = width.topk(min(32, width.numel())).indices
    size = int((ends - starts).max())
    inside = starts[widest, None] + torch.arange(size, device=starts.device)
    values = ascending[torch.minimum(inside, ends[widest, None] - 1)]
    gap = values.double().diff(dim=-1).argmax(dim=-1) if size > 1 else 0
    return torch.cat([starts, torch.minimum(starts[widest] + 1 + gap, ends[widest] - 1)]).unique()
