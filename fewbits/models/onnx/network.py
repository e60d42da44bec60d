"""A folded graph as a function in torch, with gradients, of which any part can be run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewbits.models.network import Block, Norm, Place, Reads, Sum, UnsupportedError
from fewbits.models.onnx.batch_norm import MEAN_INPUT, VARIANCE_INPUT
from fewbits.models.onnx.place import RECTIFIERS
from fewbits.models.onnx.torch_ops import OPERATORS, READS_NUMBERS

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class _Node:
    name: str
    op: str
    attributes: Mapping[str, Any]
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


class OnnxNetwork:
    """Runs parts of a graph; see :class:`fewbits.models.network.Network`.

    Args:
        graph: with constants as initializers. They are read once, and shared with it.

    Attributes:
        inputs, outputs: names of the graph's own.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.inputs = tuple(value.name or "" for value in graph.inputs)
        self.outputs = tuple(value.name or "" for value in graph.outputs)
        self._constants = {
            name: torch.from_numpy(value.const_value.numpy().copy())
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        self._nodes = [
            _Node(
                node.name or "",
                node.op_type,
                {key: attribute.value for key, attribute in node.attributes.items()},
                tuple(None if value is None else value.name for value in node.inputs),
                tuple(value.name or "" for value in node.outputs),
            )
            for node in graph
        ]
        self._producer = {name: node for node in self._nodes for name in node.outputs if name}

    def place(self, node: str, constant: str) -> Place:
        """Where a layer reads that constant."""
        layer = next((one for one in self._nodes if one.name == node), None)
        if layer is None:
            raise UnsupportedError(f"layer {node!r}, which is in a body of a loop or a condition")
        behind = (one for one in self._nodes if set(one.inputs) & set(layer.outputs))
        for host in (layer, *behind):
            if constant in host.inputs:
                return host.name, host.inputs.index(constant)
        raise KeyError(f"{node} does not read {constant}")

    def norms(self) -> tuple[Norm, ...]:
        """Its batch norms, in order."""
        found = []
        for node in self._nodes:
            if node.op == "BatchNormalization" and not node.attributes.get("training_mode"):
                tensor, _, _, mean, variance = node.inputs
                if tensor and mean in self._constants and variance in self._constants:
                    places = (node.name, MEAN_INPUT), (node.name, VARIANCE_INPUT)
                    found.append(Norm(node.name, tensor, mean, variance, places))
        return tuple(found)

    def sums(self) -> tuple[Sum, ...]:
        """Its sums of two tensors, in order."""
        return tuple(
            Sum(((node.name, 0), (node.name, 1)), (node.outputs[0], *self._rectified(node)))
            for node in self._nodes
            if node.op == "Add" and not set(node.inputs) & set(self._constants)
        )

    def _rectified(self, node: _Node) -> tuple[str, ...]:
        """What a node that cuts the range off makes of another's result, where nothing else reads that."""
        readers = [one for one in self._nodes if node.outputs[0] in one.inputs]
        alone = len(readers) == 1 and readers[0].op in RECTIFIERS and node.outputs[0] not in self.outputs
        return readers[0].outputs if alone else ()

    def run(self, given: Mapping[str, Tensor], wanted: Collection[str], reads: Reads) -> dict[str, Tensor]:
        """The tensors of these names. Raises UnsupportedError for what is not run here."""
        needed = self._between(given, wanted)
        left = _uses(needed)
        values = dict(given)
        read: dict[tuple[int, str], Tensor] = {}
        for node in needed:
            inputs = [self._read(values, read, reads, node, index) for index in range(len(node.inputs))]
            results = _computed(node, inputs)
            values.update(zip(node.outputs, results, strict=False))
            missing = set(node.outputs) - set(values)
            if missing & {*left, *wanted}:
                raise UnsupportedError(f"a further output of node {node.name!r} ({node.op})")
            for name in node.inputs:
                if name in left:
                    left[name] -= 1
                    if not left[name] and name not in wanted and name not in given:
                        values.pop(name, None)  # what autograd needs it keeps by itself
        return {name: values[name] if name in values else self._constants[name] for name in wanted}

    def _read(
        self,
        values: Mapping[str, Tensor],
        read: dict[tuple[int, str], Tensor],
        reads: Reads,
        node: _Node,
        index: int,
    ) -> Tensor | None:
        name = node.inputs[index]
        if not name:
            return None
        tensor = values[name] if name in values else self._constants[name]
        function = reads.get((node.name, index))
        if function is None:
            return tensor
        if (id(function), name) not in read:  # several nodes may read one quantized tensor
            read[id(function), name] = function(tensor)
        return read[id(function), name]

    def _between(self, given: Collection[str], wanted: Collection[str]) -> list[_Node]:
        """The nodes that compute what is wanted, in the order of the graph."""
        found: set[str] = set()
        waiting = [name for name in wanted if name not in given]
        while waiting:
            node = self._producer.get(waiting.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                waiting += [name for name in node.inputs if name and name not in given]
        return [node for node in self._nodes if node.name in found]

    def blocks(self, layers: Collection[str]) -> tuple[Block, ...]:
        """The network as blocks."""
        cuts = set(self._cuts(layers))
        found: list[Block] = []
        begin, cut, inside = None, None, []
        for node in self._nodes:
            if node.name in layers:
                if cut is not None:
                    found.append(self._block(begin, (cut,), inside))
                    begin, cut, inside = cut, None, []
                inside.append(node.name)
            if inside and node.outputs[0] in cuts:
                cut = node.outputs[0]
        return (*found, self._block(begin, self.outputs, inside)) if inside else ()

    def _block(self, begin: str | None, end: tuple[str, ...], layers: list[str]) -> Block:
        given = self.inputs if begin is None else (*self.inputs, begin)
        return Block(begin, end, frozenset(node.name for node in self._between(given, end)), tuple(layers))

    def _cuts(self, layers: Collection[str]) -> Iterator[str]:
        last = {name: index for index, node in enumerate(self._nodes) for name in node.inputs if name}
        carried: set[str] = set()
        for index, node in enumerate(self._nodes):
            depends = node.name in layers or any(name in carried for name in node.inputs)
            if depends and node.op != "Shape":
                carried.update(name for name in node.outputs if last.get(name, -1) > index)
            carried = {name for name in carried if last[name] > index}
            if carried == {node.outputs[0]}:
                yield node.outputs[0]


def _together(node: _Node, inputs: list[Tensor | None]) -> list[Tensor | None]:
    """Constants where what is computed is, and as wide; numbers that say how stay as they are, on the CPU."""
    given = [one for one in inputs if one is not None]
    device = next((one.device for one in given if one.device.type != "cpu"), None)
    wide = any(one.dtype == torch.float64 for one in given)
    if node.op in READS_NUMBERS or (device is None and not wide):
        return inputs
    return [None if one is None else _like(one, device, wide) for one in inputs]


def _like(tensor: Tensor, device: torch.device | None, wide: bool) -> Tensor:
    moved = tensor if device is None else tensor.to(device)
    return moved.double() if wide and moved.is_floating_point() else moved


def _uses(nodes: Collection[_Node]) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in nodes:
        for name in node.inputs:
            if name:
                found[name] = found.get(name, 0) + 1
    return found


def _computed(node: _Node, inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
    if node.op not in OPERATORS:
        raise UnsupportedError(f"operator {node.op} of node {node.name!r}")
    try:
        result = OPERATORS[node.op](node.attributes, *_together(node, inputs))
    except UnsupportedError as error:
        raise UnsupportedError(f"{error} of node {node.name!r}") from None
    return result if isinstance(result, tuple) else (result,)
