"""Codebooks: the nearest of a few entries, the entries of codes, and what a codebook must be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from fewbits.errors import InputError

_LARGEST = torch.finfo(torch.float32).max * (1 - 2**-15)  # leaves room for 256 entries above it


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
    """The values halfway between neighbouring entries along the last axis.

    Each is below the upper entry, to which it may round where the two are neighbouring floats: an entry is
    its own nearest.
    """
    lower, upper = book[..., :-1], book[..., 1:]
    middles = ((lower.double() + upper.double()) / 2).to(book.dtype)
    return torch.minimum(middles, torch.nextafter(upper, torch.full_like(upper, -torch.inf)))


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


def check_books(books: Tensor, shape: tuple[int, ...], entries: int) -> None:
    """Raise InputError unless there is a book for every row, ascending, finite and of at most ``entries``.

    ``shape`` is that of the parameters; the entries are the axis behind it.
    """
    if books.dim() == 0 or tuple(books.shape[:-1]) != shape:
        raise InputError(
            f"codebook has shape {tuple(books.shape)}, the layout needs {shape} and an axis of entries"
        )
    if not 1 <= books.shape[-1] <= entries:
        raise InputError(f"a codebook of {books.shape[-1]} entries; at most {entries} fit its bits")
    lower, upper = books[..., :-1], books[..., 1:]
    for wrong, values, what in (
        (~torch.isfinite(books), books, "a codebook entry is {}, not finite"),
        (upper == lower, upper, "the codebook repeats the entry {}"),
        (upper < lower, upper, "codebook entries must ascend; {} is out of order"),
    ):
        if bool(wrong.any()):
            raise InputError(what.format(float(values[wrong][0])))


def joined(books: list[Tensor]) -> Tensor:
    """Books of blocks of rows as (rows, entries), the shorter ones lengthened by unused entries."""
    flat = [b.reshape(-1, b.shape[-1]) for b in books]
    entries = max(b.shape[-1] for b in flat)
    return torch.cat([_lengthened(b, entries) for b in flat])


def _lengthened(books: Tensor, entries: int) -> Tensor:
    missing = entries - books.shape[-1]
    return ascending(torch.cat([books, books[:, -1:].expand(-1, missing)], dim=-1)) if missing else books


def ascending(books: Tensor) -> Tensor:
    """Books (rows, entries) whose repeated entries are moved just above the largest, where no value is nearer."""
    books = books.clamp(max=_LARGEST)
    repeated = torch.nn.functional.pad(books.diff(dim=-1) <= 0, (1, 0))
    books = torch.where(repeated, books[..., -1:], books).sort(dim=-1).values
    for column in range(1, books.shape[-1]):
        before = books[..., column - 1]
        above = torch.nextafter(before, torch.full_like(before, torch.inf))
        books[..., column] = torch.maximum(books[..., column], above)
    return books
