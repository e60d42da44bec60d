"""One-dimensional k-means.

In one dimension a cluster is a run of the sorted values, so the best clustering is a best choice of cuts,
which dynamic programming finds exactly (Wang and Song 2011, Ckmeans.1d.dp). Rows of at most ``_EXACT`` points
are solved that way. Longer ones are first merged into cells, narrow where the density to the power 1/3 is
high (Panter and Dite 1951), solved exactly on the cells' means, and then refined by Lloyd iterations on all
points, which only lower the error. Rows are (rows, points), ascending, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbits.numerics.codebook import ascending, midpoints
from fewbits.numerics.rows import Points

_EXACT = 512  # points up to which (or 2 per entry) a row is solved exactly
_CELLS_PER_ENTRY = 16  # into which longer rows are merged: within 0.1 % of the optimum
_FEWEST_CELLS = 128
_WORK = 1 << 19  # elements of the dynamic program's tables held at a time: few enough for the cache
_ROUNDS = 200  # Lloyd iterations at most; each row stops changing much earlier


def learn(points: Points, entries: int) -> Tensor:
    """The codebook of least squared error of each row, (channels, groups, entries) float32, ascending.

    Where no row has that many distinct values the books are as long as the most there are. A row with fewer
    than its neighbours gets the rest as unused entries just above its largest.
    """
    shape = points.values.shape[:-1]
    values, weights = (part.flatten(0, -2) for part in points.ascending())
    distinct = int((values.diff(dim=-1) != 0).sum(dim=-1).max()) + 1
    entries = min(entries, distinct)
    books = torch.empty(values.shape[0], entries, dtype=torch.float32, device=values.device)
    cells = values.shape[-1]
    if cells > max(_EXACT, 2 * entries):
        cells = max(_FEWEST_CELLS, min(_CELLS_PER_ENTRY * entries, _EXACT), 2 * entries)
    step = max(1, _WORK // cells**2)
    for start in range(0, values.shape[0], step):
        rows = slice(start, start + step)
        books[rows] = _learn_rows(values[rows].double(), weights[rows].double(), entries, cells)
    return books.view(*shape, entries)


def _learn_rows(values: Tensor, weights: Tensor, entries: int, cells: int) -> Tensor:
    """Books (rows, entries) of ascending float64 points (rows, points), which are merged if above ``cells``."""
    # Centred and scaled: sums of squares lose nothing to a common offset and cannot overflow.
    middle = (values * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    unit = (values - middle).abs().amax(dim=-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    centred = (values - middle) / unit
    sums = _Sums.of(centred, weights)
    if values.shape[-1] <= cells:
        cuts = _optimal_cuts(sums, entries)
    else:
        merged = _Sums.of(*_merge(centred, weights, cells))
        cuts = _lloyd(centred, sums, _filled(merged.means(_optimal_cuts(merged, entries))))
    first = values.gather(-1, cuts[:, :-1].clamp(max=values.shape[-1] - 1))
    last = values.gather(-1, (cuts[:, 1:] - 1).clamp(min=0))
    # A cluster of one value is that value, exactly.
    books = _filled(torch.where(first == last, first, sums.means(cuts) * unit + middle))
    # Where there are no more distinct values than entries they are the book, whatever rounding made of the sums.
    rank = torch.nn.functional.pad(values.diff(dim=-1) != 0, (1, 0)).cumsum(-1)
    distinct = values[:, -1:].repeat(1, entries).scatter_(-1, rank.clamp(max=entries - 1), values)
    return ascending(torch.where(rank[:, -1:] < entries, distinct, books).float())


class _Sums:
    """Running weights and weighted sums of rows of points, (rows, points + 1), from zero."""

    def __init__(self, weight: Tensor, total: Tensor) -> None:
        self.weight, self.total = weight, total

    @staticmethod
    def of(values: Tensor, weights: Tensor) -> _Sums:
        pad = torch.nn.functional.pad
        return _Sums(pad(weights.cumsum(-1), (1, 0)), pad((values * weights).cumsum(-1), (1, 0)))

    def means(self, cuts: Tensor) -> Tensor:
        """The mean between consecutive cuts (rows, clusters + 1); NaN where they enclose nothing."""
        return self.total.gather(-1, cuts).diff(dim=-1) / self.weight.gather(-1, cuts).diff(dim=-1)


def _optimal_cuts(sums: _Sums, entries: int) -> Tensor:
    """The cuts (rows, entries + 1) of the exact optimum by dynamic programming; some clusters may be empty.

    A cluster with weight w and sum t explains t^2 / w of the sum of squares, so the best cuts explain most.
    """
    rows, edges = sums.weight.shape
    gained = sums.total.unsqueeze(-2) - sums.total.unsqueeze(-1)
    weight = sums.weight.unsqueeze(-2) - sums.weight.unsqueeze(-1)
    gained = gained.square_().div_(weight.clamp_(min=1e-300))  # no weight, no sum: explains nothing
    # Indexed [from, to]; no cluster runs backwards.
    backwards = torch.ones(edges, edges, dtype=torch.bool, device=gained.device).tril(-1)
    gained.masked_fill_(backwards, -torch.inf)
    best = [gained[:, 0]]
    buffer = torch.empty_like(gained)
    for _ in range(entries - 1):
        torch.add(gained, best[-1].unsqueeze(-1), out=buffer)
        best.append(buffer.amax(dim=-2))
    cut = torch.full((rows, 1), edges - 1, dtype=torch.int64, device=gained.device)
    cuts = [cut]
    for before in reversed(best[:-1]):
        into = gained.gather(-1, cut.unsqueeze(-2).expand(-1, edges, -1)).squeeze(-1)
        cut = (into + before).argmax(dim=-1, keepdim=True)
        cuts.append(cut)
    cuts.append(torch.zeros_like(cut))
    return torch.cat(cuts[::-1], dim=-1)


def _filled(books: Tensor) -> Tensor:
    """The entry before in place of NaN, the mean of an empty cluster; at the start the first number."""
    first = books.nan_to_num(nan=torch.inf).amin(dim=-1, keepdim=True)
    return torch.where(books.isnan(), first, books).cummax(dim=-1).values


def _merge(values: Tensor, weights: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Merge neighbouring points into cells with an equal share of the cube root of the density."""
    gaps = torch.nn.functional.pad(values.diff(dim=-1), (1, 0)).clamp_(min=1e-12)
    share = (weights * gaps.square()).pow_(1 / 3)
    # An empty gap needs one boundary however wide it is: no share is above a cell's, found by repetition.
    for _ in range(12):
        share = torch.minimum(share, share.sum(-1, keepdim=True) / cells)
    share = share.cumsum(-1)
    cell = (share / share[:, -1:] * cells).long().clamp_(max=cells - 1)
    shape = (values.shape[0], cells)
    merged = torch.zeros(shape, dtype=values.dtype, device=values.device)
    total = merged.scatter_add(-1, cell, weights)
    sums = merged.scatter_add(-1, cell, values * weights)
    # An empty cell repeats the one before it with no weight.
    return torch.where(total > 0, sums / total, -torch.inf).cummax(dim=-1).values, total


def _lloyd(values: Tensor, sums: _Sums, books: Tensor) -> Tensor:
    """Alternate means and nearest entries until no cut moves; gives the cuts."""
    ends = torch.zeros(values.shape[0], 1, dtype=torch.int64, device=values.device)
    cuts = ends
    for _ in range(_ROUNDS):
        inner = torch.searchsorted(values, midpoints(books), right=True)
        moved = torch.cat([ends, inner, ends + values.shape[-1]], dim=-1)
        if torch.equal(moved, cuts):
            break
        cuts = moved
        means = sums.means(cuts)
        books = torch.where(means.isnan(), books, means)
    return cuts
