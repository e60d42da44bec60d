"""Where a file that is compressed was exported from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from fewbits.models.torch.structure import Structure
    from fewbits.planning.recipe import Recipe


@dataclass(frozen=True)
class Origin:
    """Where a file was exported from.

    Attributes:
        name: of the model, as the user knows it.
        framework: what it came from: "pytorch", the engine that runs ``program``, or "keras".
        program: the module as its framework's own file, where that is run for comparison.
        structure: how a module's outputs are nested; None where no module came in.
        notes: for the report.
        trained: what training with rounding has settled; None for other models.
    """

    name: str
    framework: str
    program: Path | None
    structure: Structure | None
    notes: tuple[str, ...]
    trained: Trained | None = None


@dataclass(frozen=True)
class Trained:
    """What training with rounding has settled.

    Attributes:
        recipe: that the weights are levels of.
        feeds: some inputs of the file.
        values: what tensors hold for them, by which they are found in the file, whatever it calls them.
        ranges: of these tensors, learned.
    """

    recipe: Recipe
    feeds: Mapping[str, np.ndarray]
    values: tuple[np.ndarray, ...]
    ranges: tuple[tuple[float, float], ...]
