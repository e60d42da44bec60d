"""Tables and numbers of the small commands in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table without a frame: columns of text on the left, of numbers aligned on the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for head in left:
        table.add_column(head)
    for head in right:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def short(value: float | None) -> str:
    """A number of any size in three significant digits; None is an em dash."""
    from fewbits.report import words

    return words.NOTHING if value is None else f"{value:.3g}"
