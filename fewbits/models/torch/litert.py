"""Write an exported program as a `.tflite` file, through LiteRT's converter for PyTorch in a process of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.errors import InputError
from fewbits.models.conversion import convert_apart

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write_tflite(
    program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str], what: str
) -> None:
    """The program, for the number of samples it was exported with, with inputs and outputs of these names.

    Args:
        program: exported with its inputs by name.
        path: of the file to write; its folder gets what is needed on the way.
        inputs, outputs: their names, in order.
        what: to call the module in errors.

    Raises:
        InputError: litert-torch is not installed, or cannot convert the module.
    """
    if importlib.util.find_spec("litert_torch") is None:
        raise InputError(
            f"{what}: writing a PyTorch module as .tflite needs litert-torch, not installed here; run: "
            "pip install 'fewbits[torch-tflite]'"
        )
    import torch

    source = path.with_suffix(".pt2")
    torch.export.save(program, source)
    request = {"program": str(source), "target": str(path), "inputs": list(inputs), "outputs": list(outputs)}
    # JAX is one of its parts; it has no business on a GPU here.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    convert_apart("fewbits.models.torch.litert_worker", request, source, what, path.parent, quiet)
    source.unlink()
