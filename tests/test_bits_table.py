import io
import math

import pytest
from rich.console import Console

from fewbits.bits_table import parse, show
from fewbits.errors import InputError


def shown(text: str) -> dict[str, list[str]]:
    """The cells of each row, by format."""
    out = io.StringIO()
    show(text, Console(file=out, width=100, color_system=None))
    rows = [line.split() for line in out.getvalue().splitlines()[4:-1] if line.strip()]
    return {row[0]: row[1:] for row in rows}


def test_fields_values_and_errors_of_two_formats():
    rows = shown("2.71828")
    assert rows["fp16"] == ["0", "10000", "0101110000", "2.71875", "+0.00047", "+0.02%"]
    assert rows["fp8_e5m2"] == ["0", "10000", "01", "2.5", "-0.218", "-8.03%"]


def test_a_format_without_sign_and_mantissa_shows_none():
    assert shown("4")["e8m0"] == ["—", "10000001", "—", "4", "0", "0"]


def test_zero_has_no_relative_error_to_divide_by():
    assert shown("0")["fp16"][-3:] == ["0", "0", "0"]


def test_beyond_the_range_is_infinite_or_not_a_number():
    rows = shown("1e6")
    assert rows["fp16"][3:] == ["inf", "+inf", "+inf%"]
    assert rows["fp8_e4m3fn"][3:] == ["nan", "—", "—"]


def test_every_line_fits_100_columns():
    out = io.StringIO()
    show("-1.2345678901234567e-30", Console(file=out, width=100, color_system=None))
    assert "…" not in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 100


@pytest.mark.parametrize("text", ["abc", "", "1,5", "0x10"])
def test_a_text_that_is_no_number_is_one_line(text):
    with pytest.raises(InputError, match="is not a number") as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_finite_number_beyond_float64_is_refused_and_infinity_is_not():
    with pytest.raises(InputError, match="beyond the largest float64"):
        parse("1e400")
    assert math.isinf(parse("-inf"))
