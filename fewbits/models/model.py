"""The Model protocol, and what opens a file of any kind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fewbits.errors import InputError
from fewbits.models.network import Network
from fewbits.named import is_named
from fewbits.planning.equalization import Rescaling
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import Placement, Plan
from fewbits.planning.recipe import Assignment
from fewbits.planning.target import Target


@dataclass(frozen=True)
class Wanted:
    """What has to be observed for a recipe and a target.

    Attributes:
        tensors: whose histograms are needed.
        rows: of which rows are kept as examples (inputs of linear layers).
        samples: of which whole samples are kept (inputs of convolutions).
    """

    tensors: tuple[str, ...]
    rows: frozenset[str]
    samples: frozenset[str]


class Model(Protocol):
    """A trained model of any framework, as the main job uses it."""

    path: Path
    info: ModelInfo
    format: str
    sha256: str
    size_bytes: int
    artifact_name: str
    opset: int | None

    @property
    def params(self) -> int:
        """Number of elements in all constants."""
        ...

    def weight(self, name: str) -> np.ndarray:
        """A constant of the model, float32, by name."""
        ...

    def place(self, assigned: Iterable[Assignment], target: Target) -> Placement:
        """Where activations are quantized for that target."""
        ...

    def wanted(self, assigned: Iterable[Assignment], target: Target) -> Wanted:
        """What has to be observed for it."""
        ...

    def tapped(self, tensors: Collection[str], path: Path) -> None:
        """Write the float model with these tensors as further outputs."""
        ...

    def write(self, plan: Plan, path: Path) -> None:
        """Write the model with every tensor represented as the plan says."""
        ...

    def read_back(self, path: Path, plan: Plan) -> Mapping[str, int]:
        """Compare a written file with its plan, and give its bytes by dtype; VerificationError where they differ."""
        ...

    def spell_out(self, plan: Plan, path: Path) -> None:
        """Write the plan's own arithmetic in plain float operators."""
        ...

    def bytes_by_dtype(self) -> Mapping[str, int]:
        """Bytes of the original's constants by dtype."""
        ...

    def operators(self) -> Mapping[str, int]:
        """How often each operator occurs, the most frequent first."""
        ...

    def network(self) -> Network:
        """The float model in torch, with gradients; UnsupportedError where that is not offered."""
        ...

    def multiplications(self, size: int) -> Mapping[str, int | None]:
        """By layer, how often it multiplies for one sample; None where a shape follows from the data.

        Open axes other than that of the samples have ``size`` elements. Looking up an embedding multiplies nothing.
        """
        ...

    def rescaled(self, found: Collection[Rescaling]) -> Model:
        """The same function with channels between some layers rescaled; only for its own links."""
        ...

    def layer_outputs(self, path: Path, tapped: Path) -> Mapping[str, str]:
        """Write a written file with its layers' outputs as further outputs; their names in it, by layer."""
        ...


def open_model(path: Path) -> Model:
    """Open a model by the kind of its file.

    Raises:
        InputError: a kind that is not supported, a missing or unreadable file, NaN or Inf in a weight.
    """
    if path.suffix == ".onnx":
        from fewbits.models.onnx.model import open_onnx

        return open_onnx(path)
    if path.suffix == ".tflite":
        from fewbits.models.tflite.model import open_tflite

        return open_tflite(path)
    if path.suffix == ".safetensors" or is_named(str(path)):
        raise InputError(f"{path}: a PyTorch module, which only compress takes; give an .onnx file")
    if path.is_file():
        from fewbits.models.onnx.load import refuse_pickle

        refuse_pickle(path)
    if not path.exists():
        raise InputError(
            f"{path}: no such file; MODEL is an .onnx, .tflite or .keras file, a .safetensors with --arch, or "
            "module:factory"
        )
    raise InputError(
        f"{path}: not an .onnx file; export the model to ONNX (torch.onnx.export(..., dynamo=True))"
    )
