"""What each kind of row does: a coder takes a sample of rows and gives their parameters and encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbits.numerics import binary, codebook
from fewbits.numerics.affine import CodeRange, encode_affine
from fewbits.numerics.floats import stored_scale
from fewbits.numerics.levels import ScaleRule, encode_levels
from fewbits.numerics.qtype import QType
from fewbits.numerics.sample import Sample
from fewbits.numerics.search import Search


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
        codebooks = [b.codebook for b in blocks if b.codebook is not None]
        return Parameters(
            _joined([b.scale for b in blocks]),
            _joined([b.zero_point for b in blocks]),
            _joined([b.free_zero_point for b in blocks]),
            codebook.joined(codebooks) if codebooks else None,
        )


def _joined(blocks: list[Tensor | None]) -> Tensor | None:
    present = [b.reshape(-1, 1) for b in blocks if b is not None]
    return torch.cat(present) if present else None


@dataclass(frozen=True, slots=True)
class Fit:
    """Parameters, and ``encode``: float32 parts of the rows they were fitted to, to codes of any dtype."""

    parameters: Parameters
    encode: Callable[[Tensor], Tensor]


Coder = Callable[[Sample], Fit]


def uniform(row: QType, codes: CodeRange, search: Search) -> Coder:
    """Int and uint rows, on the grid that the search finds."""

    def fit(sample: Sample) -> Fit:
        grid = search.grid(sample, codes)
        grid = replace(grid, scale=stored_scale(grid.scale, row))
        parameters = Parameters(grid.scale, grid.zero_point, grid.free_zero_point)
        return Fit(parameters, lambda rows: encode_affine(rows, grid, codes))

    return fit


def known_levels(row: QType, rule: ScaleRule) -> Coder:
    """Narrow floats and fixed codebooks, at the scale of the rule."""

    def fit(sample: Sample) -> Fit:
        scale = rule(sample)
        return Fit(Parameters(scale), lambda rows: encode_levels(rows / scale, row))

    return fit


def learned_codebook(entries: int) -> Coder:
    """A codebook of at most ``entries``, by k-means."""

    def fit(sample: Sample) -> Fit:
        books = codebook.learn(sample.points, entries)
        return Fit(Parameters(codebook=books), codebook.nearest(books))

    return fit


def signs(sample: Sample) -> Fit:
    """Binary: signs, and the mean magnitude."""
    return Fit(Parameters(binary.binary_scale(sample)), binary.binary_codes)


def ternary(threshold_of: Callable[[Sample], Tensor]) -> Coder:
    """Signs of the magnitudes above a threshold, and their mean."""

    def fit(sample: Sample) -> Fit:
        threshold = threshold_of(sample)
        scale = binary.ternary_scale(sample, threshold)
        return Fit(Parameters(scale), lambda rows: binary.ternary_codes(rows, threshold))

    return fit
