"""Where a file that is compressed was exported from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewbits.models.torch.structure import Structure


@dataclass(frozen=True)
class Origin:
    """Where a file was exported from.

    Attributes:
        name: of the model, as the user knows it.
        framework: what it came from: "pytorch", the engine that runs ``program``, or "keras".
        program: the module as its framework's own file, where that is run for comparison.
        structure: how a module's outputs are nested; None where no module came in.
        notes: for the report.
    """

    name: str
    framework: str
    program: Path | None
    structure: Structure | None
    notes: tuple[str, ...]
