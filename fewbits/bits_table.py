"""The table that ``fewbits bits`` prints: one number in every float format."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fewbits.errors import InputError
from fewbits.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Console

    from fewbits.numerics.bits import NumberBits

NOTHING = "\N{EM DASH}"


def parse(text: str) -> float:
    """The number that ``text`` spells in decimal; ``inf`` and ``nan`` are allowed by name.

    Raises:
        InputError: the text is no number, or a finite one beyond float64.
    """
    try:
        number = float(text)
    except ValueError:
        raise InputError(f"{text!r} is not a number; give one such as 2.71828, -1e-3 or inf") from None
    if math.isinf(number) and "inf" not in text.lower():
        raise InputError(f"{text!r} is beyond the largest float64, about 1.8e308; give a smaller number")
    return number


def show(text: str, console: Console) -> None:
    """Print sign, exponent, mantissa, value and error of a number in every format.

    Raises:
        InputError: as :func:`parse`.
    """
    from rich.text import Text

    from fewbits.numerics.bits import bits_of

    number = parse(text)
    table = plain_table(("format", "sign", "exponent", "mantissa"), ("value", "error", "relative error"))
    for record in bits_of(number):
        table.add_row(*(Text(cell) for cell in _cells(record, number)))
    console.print(Text(f"{text.strip()} is {number!r} in float64"))
    console.print(table)
    console.print(Text("beyond its range a format gives infinity or NaN, where it has one", style="dim"))


def _cells(record: NumberBits, number: float) -> tuple[str, ...]:
    relative = record.error / abs(number) if number else record.error
    return (
        record.qtype,
        record.sign or NOTHING,
        record.exponent or NOTHING,
        record.mantissa or NOTHING,
        f"{record.value:.9g}",
        _difference(record.error, "+.3g"),
        _difference(relative, "+.2%" if abs(relative) >= 1e-4 else "+.2g"),
    )


def _difference(value: float, form: str) -> str:
    if math.isnan(value):
        return NOTHING
    return "0" if value == 0 else format(value, form)
