"""A TensorFlow Lite model through its rooms: read, described, and written as a plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from fewbits.models.model import Wanted
from fewbits.models.network import Network, UnsupportedError
from fewbits.models.tflite.apply import spell_out, tap, write
from fewbits.models.tflite.fold import fold_shapes
from fewbits.models.tflite.graph import graph_of
from fewbits.models.tflite.layers import KINDS, canonical, find_layers
from fewbits.models.tflite.load import TFLiteSource, load
from fewbits.models.tflite.place import float_only, place
from fewbits.models.tflite.rewrite import Rewriter
from fewbits.models.tflite.signatures import signatures
from fewbits.models.tflite.types import INT4, INT8, UINT8
from fewbits.models.tflite.verify import bytes_by_dtype, read_back
from fewbits.models.tflite.work import multiplications
from fewbits.planning.equalization import Rescaling
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import Placement, Plan
from fewbits.planning.recipe import Assignment
from fewbits.planning.target import Target


class TFLiteModel:
    """A model read from a file; see :class:`fewbits.models.model.Model`."""

    format = "tflite"
    opset: int | None = None

    def __init__(self, source: TFLiteSource) -> None:
        fold_shapes(source.model)
        self.source, self.graph = source, graph_of(source.model)
        self.path = source.path
        layers = find_layers(source.path, self.graph)
        self.info = ModelInfo(
            source.inputs,
            source.outputs,
            layers,
            self._in_codes(),
            float_only(self.graph),
            signatures(source.model),
        )
        self.sha256, self.size_bytes = source.sha256, source.size_bytes
        self.artifact_name = f"{source.path.stem}.tflite"

    @property
    def params(self) -> int:
        """Number of elements in all constants of the main subgraph."""
        return sum(tensor.data.size for tensor in self.graph.tensors if tensor.data is not None)

    def weight(self, name: str) -> np.ndarray:
        """A constant by name; a layer's weight with its axes in the order that plans have them."""
        tensor = self.graph.by_name[name]
        assert tensor.data is not None
        for layer in self.info.layers:
            if name in (weight.name for weight in layer.weights):
                return canonical(tensor.data, KINDS[layer.op])
        return tensor.data.copy()

    def place(self, assigned: Iterable[Assignment], target: Target) -> Placement:
        """Where activations are quantized."""
        return place(self.graph, assigned)

    def wanted(self, assigned: Iterable[Assignment], target: Target) -> Wanted:
        """Ranges of every site, and examples of what integer weights meet."""
        assigned = tuple(assigned)
        rounded = [a.layer for a in assigned if a.weights is not None and not a.weights.is_float]
        rows = {
            layer.inputs[0]
            for layer in rounded
            if layer.kind == "linear"
            and self.graph.by_name[layer.inputs[0]].shape[-1:] == layer.weights[0].shape[1:]
        }
        samples = {
            layer.inputs[0] for layer in rounded if layer.kind == "conv" and layer.geometry is not None
        }
        ranges = [site.range_of for site in self.place(assigned, target).sites if site.fixed_range is None]
        return Wanted(
            tuple(dict.fromkeys([*ranges, *sorted(rows | samples)])), frozenset(rows), frozenset(samples)
        )

    def tapped(self, tensors: Collection[str], path: Path) -> None:
        """Write the float model with these tensors as further outputs."""
        path.write_bytes(_tapped(self.source, tensors))

    def write(self, plan: Plan, path: Path) -> None:
        """Write the model with every tensor represented as the plan says."""
        path.write_bytes(write(Rewriter(self.source.model), self.graph, plan))

    def read_back(self, path: Path, plan: Plan) -> Mapping[str, int]:
        """Compare a written file with its plan; see :func:`fewbits.models.tflite.verify.read_back`."""
        return read_back(path, plan, self.info, self.graph)

    def spell_out(self, plan: Plan, path: Path) -> None:
        """Write the plan's own arithmetic in plain float operators."""
        path.write_bytes(spell_out(Rewriter(self.source.model), self.graph, plan))

    def bytes_by_dtype(self) -> Mapping[str, int]:
        """Bytes of the original's constants by dtype."""
        return bytes_by_dtype(self.path)

    def operators(self) -> Mapping[str, int]:
        """How often each operator occurs, the most frequent first."""
        return dict(Counter(operator.name for operator in self.graph.operators).most_common())

    def network(self) -> Network:
        """Not offered yet."""
        raise UnsupportedError("a TensorFlow Lite model")

    def multiplications(self, size: int) -> Mapping[str, int | None]:
        """What each layer multiplies; see :func:`fewbits.models.tflite.work.multiplications`."""
        return multiplications(self.graph, self.info.layers)

    def rescaled(self, found: Collection[Rescaling]) -> TFLiteModel:
        """Itself: it has no links."""
        assert not found
        return self

    def layer_outputs(self, path: Path, tapped: Path) -> Mapping[str, str]:
        """Write a written file with its layers' outputs as further outputs; their names in it, by layer."""
        source = load(path)
        graph = graph_of(source.model)
        found = {}
        for layer in self.info.layers:
            tensor = graph.by_name.get(layer.output)
            if tensor is not None:
                found[layer.name] = layer.output
        tapped.write_bytes(_tapped(source, list(found.values())))
        return found

    def _in_codes(self) -> int:
        """Layers whose weights are integer codes already."""
        tensors = self.source.model.subgraphs[0].tensors
        return sum(
            tensors[operator.inputs[kind.weight]].type in (INT4, INT8, UINT8)
            for operator in self.graph.operators
            if (kind := KINDS.get(operator.name)) is not None and len(operator.inputs) > kind.weight
        )


def _tapped(source: TFLiteSource, tensors: Collection[str]) -> bytes:
    return tap(Rewriter(source.model), graph_of(source.model), tensors)


def open_tflite(path: Path) -> TFLiteModel:
    """Read a `.tflite` file. Raises InputError as :func:`fewbits.models.tflite.load.load`, and for NaN weights."""
    return TFLiteModel(load(path))
