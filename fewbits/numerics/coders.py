"""What each kind of row does: a coder looks at rows and gives their parameters and their encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics import binary, codebook
from fewbits.numerics.affine import CodeRange, code_range, encode_affine
from fewbits.numerics.floats import stored_scale
from fewbits.numerics.kmeans import learn
from fewbits.numerics.levels import ScaleRule, encode_levels, least_error_rule, spanning_rule
from fewbits.numerics.parameters import Parameters
from fewbits.numerics.qtype import QType
from fewbits.numerics.rows import Rows
from fewbits.numerics.search import Search, find_search


@dataclass(frozen=True, slots=True)
class Fit:
    """Parameters, and ``encode``: float32 parts of the rows they were fitted to, to codes of any dtype."""

    parameters: Parameters
    encode: Callable[[Tensor], Tensor]


Coder = Callable[[Rows], Fit]


def coder_for(
    row: QType,
    search: str | Search,
    symmetric: bool | None,
    qmin: int | None,
    qmax: int | None,
    tensor_scale: Tensor | None,
) -> Coder:
    """The coder of a row under settings as ``quantize`` takes them; InputError for one that the row has not."""
    if row.kind == "int":
        return _uniform(row, code_range(row, symmetric, qmin, qmax), find_search(search))
    if symmetric is False or qmin is not None or qmax is not None:
        raise InputError(f"symmetric, qmin and qmax are of int and uint rows; {row.name} has its own levels")
    if search not in ("minmax", "mse"):
        raise InputError(f"search {search!r} is of int and uint rows; {row.name!r} takes 'minmax' or 'mse'")
    plain = search == "minmax"
    match row.kind:
        case "binary":
            return _signs
        case "ternary":
            return _ternary(binary.ternary_threshold if plain else binary.best_ternary_threshold)
        case "codebook" if row.levels is None:
            return _learned(row.qmax + 1)
        case _:
            rule = spanning_rule if plain else least_error_rule
            return _known_levels(row, rule(row, tensor_scale))


def _uniform(row: QType, codes: CodeRange, search: Search) -> Coder:
    """Int and uint rows, on the grid that the search finds."""

    def fit(rows: Rows) -> Fit:
        grid = search.grid(rows, codes)
        grid = replace(grid, scale=stored_scale(grid.scale, row))
        parameters = Parameters(grid.scale, grid.zero_point, grid.free_zero_point)
        return Fit(parameters, lambda values: encode_affine(values, grid, codes))

    return fit


def _known_levels(row: QType, rule: ScaleRule) -> Coder:
    """Narrow floats and fixed codebooks, at the scale of the rule."""

    def fit(rows: Rows) -> Fit:
        scale = rule(rows)
        return Fit(Parameters(scale), lambda values: encode_levels(values / scale, row))

    return fit


def _learned(entries: int) -> Coder:
    """A codebook of at most ``entries``, by k-means."""

    def fit(rows: Rows) -> Fit:
        books = learn(rows.points, entries)
        return Fit(Parameters(codebook=books), codebook.nearest(books))

    return fit


def _signs(rows: Rows) -> Fit:
    """Binary: signs, and the mean magnitude."""
    return Fit(Parameters(binary.binary_scale(rows)), binary.binary_codes)


def _ternary(threshold_of: Callable[[Rows], Tensor]) -> Coder:
    """Signs of the magnitudes above a threshold, and their mean."""

    def fit(rows: Rows) -> Fit:
        threshold = threshold_of(rows)
        scale = binary.ternary_scale(rows, threshold)
        return Fit(Parameters(scale), lambda values: binary.ternary_codes(values, threshold))

    return fit
