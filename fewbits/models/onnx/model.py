"""An ONNX model through its rooms: read, folded, described, and written as a plan says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits.models.model import Wanted
from fewbits.models.onnx.apply import apply, spell_out
from fewbits.models.onnx.batch_norm import with_expected
from fewbits.models.onnx.bodies import all_nodes
from fewbits.models.onnx.codes import count_layers_in_codes
from fewbits.models.onnx.equalize import find_links, rescale
from fewbits.models.onnx.fold import fold
from fewbits.models.onnx.layers import check_weights, find_layers
from fewbits.models.onnx.load import OnnxSource, constants, graph_and_functions, load
from fewbits.models.onnx.network import OnnxNetwork
from fewbits.models.onnx.place import place
from fewbits.models.onnx.verify import bytes_by_dtype, read_back
from fewbits.models.onnx.work import multiplications
from fewbits.models.onnx.write import write
from fewbits.planning.equalization import Rescaling
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import Placement, Plan
from fewbits.planning.recipe import Assignment
from fewbits.planning.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir


class OnnxModel:
    """A model read from a file, and its folded form that plans refer to; see :class:`fewbits.models.model.Model`."""

    format = "onnx"

    def __init__(self, source: OnnxSource, folded: ir.Model) -> None:
        layers = with_expected(find_layers(source.path, folded.graph), source.model.graph, folded.graph)
        self.source, self.folded = source, folded
        self.path = source.path
        in_codes = count_layers_in_codes(all_nodes(folded.graph))
        links = tuple(find_links(folded.graph, layers))
        self.info = ModelInfo(source.inputs, source.outputs, layers, in_codes, links=links)
        self.sha256, self.size_bytes = source.sha256, source.size_bytes
        self.artifact_name = f"{source.path.stem}.onnx"
        self.opset = source.model.opset_imports.get("")

    @property
    def params(self) -> int:
        """Number of elements in all constants."""
        return sum(tensor.size for tensor in constants(self.source.model))

    def weight(self, name: str) -> np.ndarray:
        """A constant of the folded model, by name, as stored."""
        value = self.folded.graph.initializers[name].const_value
        assert value is not None
        return np.array(value.numpy())

    def place(self, assigned: Iterable[Assignment], target: Target) -> Placement:
        """Where activations are quantized for that target."""
        return place(self.folded.graph, assigned, target)

    def wanted(self, assigned: Iterable[Assignment], target: Target) -> Wanted:
        """Ranges of every site, and examples of what integer weights meet."""
        assigned = tuple(assigned)
        rounded = [
            a.layer
            for a in assigned
            if a.weights is not None and not a.weights.is_float and a.layer.inside is None
        ]
        rows = {layer.inputs[0] for layer in rounded if layer.kind == "linear"}
        samples = {layer.inputs[0] for layer in rounded if layer.kind == "conv"}
        ranges = (site.range_of for site in self.place(assigned, target).sites)
        return Wanted(
            tuple(dict.fromkeys([*ranges, *sorted(rows | samples)])), frozenset(rows), frozenset(samples)
        )

    def tapped(self, tensors: Collection[str], path: Path) -> None:
        """Write the folded float model with these tensors as further outputs."""
        write(_tapped(self.folded.clone(), tensors), path)

    def write(self, plan: Plan, path: Path) -> None:
        """Write the model with every tensor represented as the plan says."""
        write(apply(self.folded, plan), path)

    def read_back(self, path: Path, plan: Plan) -> Mapping[str, int]:
        """Compare a written file with its plan; see :func:`fewbits.models.onnx.verify.read_back`."""
        return read_back(path, plan, self.info, self.folded.graph)

    def spell_out(self, plan: Plan, path: Path) -> None:
        """Write the plan's own arithmetic in plain float operators."""
        write(spell_out(self.folded, plan), path)

    def bytes_by_dtype(self) -> Mapping[str, int]:
        """Bytes of the original's constants by dtype."""
        return bytes_by_dtype(self.path)

    def operators(self) -> Mapping[str, int]:
        """How often each operator occurs in the folded graph, the most frequent first."""
        return dict(Counter(node.op_type for node in all_nodes(self.folded.graph)).most_common())

    def network(self) -> OnnxNetwork:
        """The folded graph in torch, with gradients."""
        return OnnxNetwork(self.folded.graph)

    def multiplications(self, size: int) -> Mapping[str, int | None]:
        """What each layer multiplies; see :func:`fewbits.models.onnx.work.multiplications`."""
        return multiplications(self.folded, self.info.layers, size)

    def rescaled(self, found: Collection[Rescaling]) -> OnnxModel:
        """The same function with channels between some layers rescaled."""
        copy = self.folded.clone()
        rescale(copy.graph, self.info.layers, found)
        return OnnxModel(self.source, copy)

    def layer_outputs(self, path: Path, tapped: Path) -> Mapping[str, str]:
        """Write a written file with its layers' outputs as further outputs; their names in it, by layer."""
        import onnx_ir as ir

        model = ir.load(path)
        have = {v.name for node in model.graph for v in node.outputs}
        found = {}
        for layer in self.info.layers:
            for name in (f"{layer.output}_f32", layer.output):
                if name in have:
                    found[layer.name] = name
                    break
        write(_tapped(model, list(found.values())), tapped)
        return found


def open_onnx(path: Path) -> OnnxModel:
    """Read an ``.onnx`` file. Raises InputError as :func:`fewbits.models.onnx.load.load` does, and for NaN weights."""
    source = load(path)
    for graph in graph_and_functions(source.model):
        check_weights(path, graph)
    return OnnxModel(source, fold(source.model))


def _tapped(model: ir.Model, tensors: Collection[str]) -> ir.Model:
    have = {output.name for output in model.graph.outputs}
    values = {v.name: v for node in model.graph for v in node.outputs}
    values.update({v.name: v for v in model.graph.inputs})
    for name in tensors:
        if name not in have:
            model.graph.outputs.append(values[name])
    return model
