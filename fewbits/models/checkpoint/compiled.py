"""Slices of bfloat16 weights to symmetric 4-bit groups, compiled: what checkpoints are taken to most often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from fewbits.numerics import QType
from fewbits.numerics.affine import CodeRange
from fewbits.numerics.checks import naming, not_finite
from fewbits.numerics.floats import stored_scale
from fewbits.numerics.search.least_error import LikelyRanges
from fewbits.planning.model_info import WeightInfo
from fewbits.planning.scheme import Scheme

FIELDS = 8  # in a word


@dataclass(frozen=True)
class CompiledGroups:
    """A scheme that ``kernels`` (:mod:`fewbits.numerics.compiled`) serve, and the format its scales are stored in."""

    kernels: ModuleType
    row: QType
    scheme: Scheme

    def parts(self, weight: WeightInfo, values: Tensor) -> Mapping[str, Tensor]:
        """What rows of a weight are stored as, by name.

        Raises:
            InputError: NaN or infinity among them.
        """
        groups, rows = self._groups(values), len(values)
        steps = self._steps(groups)
        if not bool(torch.isfinite(steps).all()):
            with naming(weight.name):
                raise not_finite(values)
        scale = stored_scale(steps, self.row)
        packed = self.kernels.packed(groups, scale)
        return {
            f"{weight.name}_packed": packed.view(torch.int32).reshape(rows, -1),
            f"{weight.name}_scale": scale.bfloat16().reshape(rows, -1),
            f"{weight.name}_shape": torch.tensor(weight.shape),
        }

    def energies(
        self, weight: WeightInfo, values: Tensor, parts: Mapping[str, Tensor]
    ) -> tuple[float, float]:
        """Sums of squares of rows of a weight, and of what parts that were read back lose of them."""
        groups = self._groups(values)
        packed = parts[f"{weight.name}_packed"].view(torch.uint8).reshape(len(groups), -1)
        scale = parts[f"{weight.name}_scale"].float().reshape(-1, 1)
        energies: tuple[float, float] = self.kernels.energies(groups, packed, scale)
        return energies

    def _groups(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.scheme.group_size or 1)

    def _steps(self, groups: Tensor) -> Tensor:
        codes = CodeRange(-self.kernels.QMAX, self.kernels.QMAX, symmetric=True)
        shares = () if self.scheme.range == "minmax" else LikelyRanges().shares(groups.shape[1], codes)
        steps: Tensor = self.kernels.steps(groups, torch.tensor(shares))
        return steps


def compiled_groups(row: QType, scheme: Scheme) -> CompiledGroups | None:
    """What serves weights in bfloat16 with scales of the same type; None for other schemes, and without numba."""
    size = scheme.group_size
    if scheme.qtype != "int4" or not scheme.symmetric or size is None or size % FIELDS:
        return None
    if scheme.range not in ("mse", "minmax") or (kernels := _kernels()) is None:
        return None
    return CompiledGroups(kernels, row, scheme)


@cache
def _kernels() -> ModuleType | None:
    try:
        from fewbits.numerics import compiled
    except (ImportError, RuntimeError):  # numba is not installed, or there is no folder for what it compiles
        return None
    return compiled
