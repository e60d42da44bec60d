"""Codebooks: the nearest of a few entries, and entries learned by one-dimensional k-means.

In one dimension a cluster is a run of the sorted values, so the best clustering is a best choice of cuts,
which dynamic programming finds exactly (Wang and Song 2011, Ckmeans.1d.dp). Rows of at most ``_EXACT`` points
are solved that way. Longer ones are first merged into cells, narrow where the density to the power 1/3 is
high (Panter and Dite 1951), solved exactly on the cells' means, and then refined by Lloyd iterations on all
points, which only lower the error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.checks import called
from fewbits.numerics.sample import Points

_EXACT = 512  # points up to which (or 2 per entry) a row is solved exactly
_WORK = 1 << 21  # elements of the dynamic program's tables held at a time
_LARGEST = torch.finfo(torch.float32).max * (1 - 2**-15)  # leaves room for 256 entries above it
_ROUNDS = 200  # Lloyd iterations at most; each row stops changing much earlier


class Nearest:
    """The nearest entry of one ascending codebook, (entries,); halfway the lower one.

    The upper 16 bits of a float32 name a narrow interval. A table gives the code at each interval's lower
    end, and one comparison with the next midpoint settles it, so the cost does not grow with the entries.
    """

    def __init__(self, book: Tensor) -> None:
        self._middles = midpoints(book)

    def codes(self, values: Tensor) -> Tensor:
        """The code of each float32 value, int32, in the shape of ``values``."""
        # A table of 65,536 intervals pays for itself on as many values.
        if values.numel() < 1 << 16 or self._comparisons > 3:
            return torch.searchsorted(self._middles, values.contiguous(), out_int32=True)
        flat = values.reshape(-1)
        codes = self._first.index_select(0, (flat.view(torch.int32) >> 16) & 0xFFFF)
        following = torch.nn.functional.pad(self._middles, (0, 1), value=torch.inf)
        for _ in range(self._comparisons):
            codes += flat > following.index_select(0, codes)
        return codes.view(values.shape)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """The codes at the lower and upper end of each interval."""
        bits = torch.arange(1 << 16, dtype=torch.int32, device=self._middles.device) << 16
        negative = bits < 0
        lowest = torch.where(negative, bits | 0xFFFF, bits).view(torch.float32)
        highest = torch.where(negative, bits, bits | 0xFFFF).view(torch.float32)
        # Beyond the infinities the patterns are NaNs, which are not looked up.
        infinite = torch.where(negative, -torch.inf, torch.inf)
        lowest = torch.where(lowest.isnan(), infinite, lowest)
        highest = torch.where(highest.isnan(), infinite, highest)
        return (
            torch.searchsorted(self._middles, lowest, out_int32=True),
            torch.searchsorted(self._middles, highest, out_int32=True),
        )

    @property
    def _first(self) -> Tensor:
        return self._ends[0]

    @cached_property
    def _comparisons(self) -> int:
        return int((self._ends[1] - self._ends[0]).max())


def midpoints(book: Tensor) -> Tensor:
    """The values halfway between neighbouring entries along the last axis, without overflow."""
    return book[..., :-1] / 2 + book[..., 1:] / 2


def nearest(books: Tensor) -> Callable[[Tensor], Tensor]:
    """An encoder of rows (channels, groups, length) to their books' (channels, groups, entries) codes."""
    if books.shape[0] * books.shape[1] > 1:
        middles = midpoints(books)
        return lambda rows: torch.searchsorted(middles, rows.contiguous(), out_int32=True)
    return Nearest(books.reshape(-1)).codes


def lookup(codes: Tensor, books: Tensor) -> Tensor:
    """The entries that codes (channels, groups, length) stand for; books (channels, groups, entries)."""
    if books.shape[0] * books.shape[1] == 1:
        return books.view(-1).index_select(0, codes.reshape(-1).int()).view(codes.shape)
    return books.gather(-1, codes.long())


def check_books(book: Tensor, entries: int, name: str | None) -> None:
    """Raise InputError unless every book ascends, is finite and has at most ``entries`` entries."""
    if not 1 <= book.shape[-1] <= entries:
        raise InputError(
            f"{called(name)}: a codebook of {book.shape[-1]} entries; at most {entries} fit its bits"
        )
    if not bool(torch.isfinite(book).all()):
        raise InputError(
            f"{called(name)}: a codebook entry is {_first(book, ~torch.isfinite(book))}, not finite"
        )
    upper, lower = book[..., 1:], book[..., :-1]
    if bool((upper == lower).any()):
        raise InputError(f"{called(name)}: the codebook repeats the entry {_first(upper, upper == lower)}")
    if bool((upper < lower).any()):
        raise InputError(
            f"{called(name)}: codebook entries must ascend; {_first(upper, upper < lower)} is out of order"
        )


def _first(values: Tensor, where: Tensor) -> float:
    return float(values[where][0])


def learn(points: Points, entries: int) -> Tensor:
    """The codebook of least squared error of each row, (channels, groups, entries) float32, ascending.

    Where no row has that many distinct values the books are as long as the most there are. A row with fewer
    than its neighbours gets the rest as unused entries just above its largest.
    """
    shape = points.values.shape[:-1]
    values, order = points.values.reshape(-1, points.values.shape[-1]).sort(dim=-1)
    if points.weights is None:
        weights = torch.ones_like(values)
    else:
        weights = points.weights.reshape(values.shape).gather(-1, order)
    distinct = int((values.diff(dim=-1) != 0).sum(dim=-1).max()) + 1
    entries = min(entries, distinct)
    books = torch.empty(values.shape[0], entries, dtype=torch.float32, device=values.device)
    limit = max(_EXACT, 2 * entries)
    cells = min(values.shape[-1], limit)
    step = max(1, _WORK // cells**2)
    for start in range(0, values.shape[0], step):
        rows = slice(start, start + step)
        books[rows] = _learn_rows(values[rows].double(), weights[rows].double(), entries, limit)
    return books.view(*shape, entries)


def joined(books: list[Tensor]) -> Tensor:
    """Books of blocks of rows as (rows, entries), the shorter ones lengthened by unused entries."""
    flat = [b.reshape(-1, b.shape[-1]) for b in books]
    entries = max(b.shape[-1] for b in flat)
    return torch.cat([_lengthened(b, entries) for b in flat])


def _lengthened(books: Tensor, entries: int) -> Tensor:
    missing = entries - books.shape[-1]
    return _ascending(torch.cat([books, books[:, -1:].expand(-1, missing)], dim=-1)) if missing else books


def _learn_rows(values: Tensor, weights: Tensor, entries: int, limit: int) -> Tensor:
    """Books (rows, entries) of ascending float64 points (rows, points)."""
    # Centred and scaled: sums of squares lose nothing to a common offset and cannot overflow.
    middle = (values * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    unit = (values - middle).abs().amax(dim=-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    centred = (values - middle) / unit
    sums = _Sums.of(centred, weights)
    if values.shape[-1] <= limit:
        cuts = _optimal_cuts(sums, entries)
    else:
        merged = _Sums.of(*_merge(centred, weights, limit))
        cuts = _lloyd(centred, sums, _filled(merged.means(_optimal_cuts(merged, entries))))
    first = values.gather(-1, cuts[:, :-1].clamp(max=values.shape[-1] - 1))
    last = values.gather(-1, (cuts[:, 1:] - 1).clamp(min=0))
    # A cluster of one value is that value, exactly.
    books = torch.where(first == last, first, sums.means(cuts) * unit + middle)
    return _ascending(_filled(books).float())


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


def _ascending(books: Tensor) -> Tensor:
    """Move repeated entries just above the largest, where no value is nearer to them."""
    books = books.clamp(max=_LARGEST)
    repeated = torch.nn.functional.pad(books.diff(dim=-1) <= 0, (1, 0))
    books = torch.where(repeated, books[..., -1:], books).sort(dim=-1).values
    for column in range(1, books.shape[-1]):
        before = books[..., column - 1]
        above = torch.nextafter(before, torch.full_like(before, torch.inf))
        books[..., column] = torch.maximum(books[..., column], above)
    return books
