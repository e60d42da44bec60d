"""An ONNX model through its rooms: read, folded, described, and written as a plan says."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.onnx.apply import apply
from fewbits.models.onnx.fold import fold
from fewbits.models.onnx.layers import find_layers
from fewbits.models.onnx.load import OnnxSource, load
from fewbits.models.onnx.place import place
from fewbits.models.onnx.write import write
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import Placement, Plan
from fewbits.planning.recipe import Assignment
from fewbits.planning.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class OnnxModel:
    """A model read from a file, and its folded form that plans refer to."""

    source: OnnxSource
    folded: ir.Model
    info: ModelInfo

    def weight(self, name: str) -> np.ndarray:
        """A constant of the folded model, by name, as stored."""
        value = self.folded.graph.initializers[name].const_value
        assert value is not None
        return np.array(value.numpy())

    def place(self, assigned: Iterable[Assignment], target: Target) -> Placement:
        """Where activations are quantized for that engine."""
        return place(self.folded.graph, assigned, target)

    def tapped(self, tensors: Collection[str], path: Path) -> None:
        """Write the folded float model with these tensors as further outputs."""
        model = self.folded.clone()
        have = {output.name for output in model.graph.outputs}
        values = {v.name: v for node in model.graph for v in node.outputs}
        values.update({v.name: v for v in model.graph.inputs})
        for name in tensors:
            if name not in have:
                model.graph.outputs.append(values[name])
        write(model, path)

    def write(self, plan: Plan, path: Path) -> None:
        """Write the model with every tensor represented as the plan says."""
        write(apply(self.folded, plan), path)


def open_model(path: Path) -> OnnxModel:
    """Read an ``.onnx`` file. Raises InputError as :func:`fewbits.models.onnx.load.load` does, and for NaN weights."""
    source = load(path)
    folded = fold(source.model)
    layers = find_layers(path, folded.graph)
    return OnnxModel(source, folded, ModelInfo(source.inputs, source.outputs, layers))
