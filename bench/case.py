"""A case: a name to select it by, and the function that measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.table import CaseResult

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """`measure` takes a function that is told what happens, one line each, and gives the result.

    It may raise `MissingError` where this machine lacks what the whole case needs.
    """

    name: str
    title: str
    measure: Callable[[Tell], CaseResult]
