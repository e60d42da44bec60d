"""A module around a compressed file: tensors in, tensors out, nested as the original nested them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fewbits.errors import InputError
from fewbits.models.torch.structure import Structure

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class CompressedModule(torch.nn.Module):
    """Takes the inputs that the original was exported with, in its order or by name, and gives what it gave.

    It runs in the engine that was chosen, on the CPU, and has no weights of its own and no gradients.
    """

    def __init__(self, run: Run, inputs: Sequence[str], structure: Structure, description: str) -> None:
        super().__init__()
        self._run, self._inputs, self._structure = run, tuple(inputs), structure
        self._description = description

    def forward(self, *tensors: Any, **named: Any) -> Any:
        """Run once. Raises InputError where the inputs are not the model's."""
        if len(tensors) > len(self._inputs):
            raise InputError(f"{len(tensors)} inputs given; the model has {', '.join(self._inputs)}")
        given = dict(zip(self._inputs, tensors, strict=False))
        if twice := [name for name in named if name in given]:
            raise InputError(f"the input {twice[0]!r} is given twice")
        given |= {name: value for name, value in named.items() if value is not None}
        device = next((value.device for value in given.values() if isinstance(value, torch.Tensor)), None)
        outputs = self._run({name: _array(value) for name, value in given.items()})
        values = (torch.from_numpy(np.array(array)).to(device) for array in outputs.values())
        return self._structure.put_together(dict(zip(self._structure.tensors, values, strict=True)))

    def extra_repr(self) -> str:
        """What runs inside."""
        return self._description


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
