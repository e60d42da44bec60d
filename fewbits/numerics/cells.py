"""Few cells in place of a long row: runs of its sorted values, of which the means and counts are kept.

A cell lies within one sorted block. Cells are cut by count, by width and ever finer towards both ends, or at
every change of value where few values occur, which are then exact.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fewbits.numerics.layout import block_size

_CELLS = 512  # per block: cells of equal count, and as many of equal width


def cells_of(row: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending means and counts, (cells,) float64, of a long row (length,) of any floating dtype."""
    threads = torch.get_num_threads()
    blocks = row.split(block_size(row))
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
    return sums[_ends(starts, ascending.numel())] - sums[starts]


def _counts(starts: Tensor, count: int) -> Tensor:
    return (_ends(starts, count) - starts).double()


def _ends(starts: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(starts[1:], (0, 1), value=count)


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
    ends = _ends(starts, ascending.numel())
    width = ascending[ends - 1].double() - ascending[starts].double()
    widest = width.topk(min(32, width.numel())).indices
    size = int((ends - starts).max())
    inside = starts[widest, None] + torch.arange(size, device=starts.device)
    values = ascending[torch.minimum(inside, ends[widest, None] - 1)]
    gap = values.double().diff(dim=-1).argmax(dim=-1) if size > 1 else 0
    return torch.cat([starts, torch.minimum(starts[widest] + 1 + gap, ends[widest] - 1)]).unique()
