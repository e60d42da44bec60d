"""What rows of codes are read with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbits.numerics.codebook import joined as joined_books
from fewbits.numerics.layout import Layout, RowBlock


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a QTensor keeps of rows: each (channels, groups, 1), the codebook (channels, groups, entries)."""

    scale: Tensor | None = None
    zero_point: Tensor | None = None
    free_zero_point: Tensor | None = None
    codebook: Tensor | None = None

    @staticmethod
    def joined(blocks: list[Parameters]) -> Parameters:
        """The parameters of consecutive blocks of rows, flattened to (rows, 1) and (rows, entries)."""
        books = [b.codebook for b in blocks if b.codebook is not None]
        return Parameters(
            _joined([b.scale for b in blocks]),
            _joined([b.zero_point for b in blocks]),
            _joined([b.free_zero_point for b in blocks]),
            joined_books(books) if books else None,
        )

    @staticmethod
    def spread(layout: Layout, given: Mapping[str, Tensor]) -> Parameters:
        """Those given by name in the layout's parameter shape (a codebook has the axis of its entries behind it)."""

        def rows(name: str) -> Tensor | None:
            return layout.spread(given[name]) if name in given else None

        books = given.get("codebook")
        return Parameters(
            rows("scale"),
            rows("zero_point"),
            rows("free_zero_point"),
            None if books is None else books.reshape(layout.channels, layout.groups, -1),
        )

    def at(self, block: RowBlock) -> Parameters:
        """The parameters of a block of the rows."""
        return self._mapped(lambda rows: rows[block])

    def of_channels(self, channels: Tensor) -> Parameters:
        """The parameters of the channels of those numbers."""
        return self._mapped(lambda rows: rows.index_select(0, channels))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Parameters:
        parts = (self.scale, self.zero_point, self.free_zero_point, self.codebook)
        return Parameters(*(None if part is None else change(part) for part in parts))


def _joined(blocks: list[Tensor | None]) -> Tensor | None:
    present = [b.reshape(-1, 1) for b in blocks if b is not None]
    return torch.cat(present) if present else None
