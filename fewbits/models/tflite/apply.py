"""Write a plan into a copy of the model. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fewbits.errors import InputError
from fewbits.models.tflite.graph import Graph, Operator
from fewbits.models.tflite.layers import KINDS, as_stored
from fewbits.models.tflite.rewrite import Codes, Rewriter, codes_type
from fewbits.models.tflite.types import FLOAT16, FLOAT32, INT32, INT64, NUMPY, OURS, UINT8
from fewbits.numerics import QTensor, find
from fewbits.planning.plan import ActivationPlan, BiasPlan, LayerPlan, Plan, WeightPlan
from fewbits.planning.recipe import IO

ANY_REPRESENTATION = frozenset(("SHAPE", "RANK"))
"""Operators that read nothing of a tensor but its shape."""

HALF_MAX = float(np.finfo(np.float16).max)


def codes_of(plan: ActivationPlan) -> Codes:
    """How the file says it: TensorFlow Lite's codes are signed, so unsigned ones move by half their range."""
    qtype = find(plan.qtype)
    shift = 0 if qtype.qmin < 0 else 1 << (qtype.bits - 1)
    return Codes(codes_type(qtype.bits), float(np.float32(plan.scale)), plan.zero_point - shift)


def on_codes(graph: Graph, plan: Plan) -> frozenset[str]:
    """The nodes that run on codes: everything that they read and make has codes in the plan."""
    read = {(edge.node, edge.index) for activation in plan.activations for edge in activation.site.readers}
    quantized = {activation.site.tensor for activation in plan.activations}
    found = set()
    for node, operator in graph.nodes.items():
        kind = KINDS.get(operator.name)
        reads = [
            (node, position) in read
            for position, _ in graph.floats(operator)
            if kind is None or kind.kind == "embedding" or position == kind.activation
        ]
        results = {tensor.name for tensor in graph.results(operator)}
        if reads and all(reads) and quantized.issuperset(results):
            found.add(node)
    return frozenset(found)


def given_as(graph: Graph, plan: Plan) -> dict[int, Codes]:
    """Inputs of the model that come as codes, by tensor."""
    found: dict[int, Codes] = {}
    for activation in plan.activations if plan.io != "float" else ():
        index = graph.by_name[activation.site.tensor].index
        if index in graph.inputs:
            found.setdefault(index, codes_of(activation))
    return found


def made_as(graph: Graph, plan: Plan, on_codes: frozenset[str]) -> dict[str, Codes]:
    """The codes of tensors that are codes from where they are made: by such nodes, or as inputs of the model."""
    made = {graph.tensors[index].name: codes for index, codes in given_as(graph, plan).items()}
    for activation in plan.activations:
        producer = graph.producers.get(graph.by_name[activation.site.tensor].index)
        if producer is not None and graph.node(producer) in on_codes:
            made.setdefault(activation.site.tensor, codes_of(activation))
    return made


def at_the_end(codes: Codes, io: IO) -> Codes | None:
    """How a model's input or result with those codes comes and goes; None for floats."""
    if io == "float":
        return None
    return Codes(UINT8, codes.scale, codes.zero_point + 128) if io == "uint8" else codes


def rounded(values: np.ndarray, codes: Codes) -> np.ndarray:
    """A constant operand as codes."""
    info = np.iinfo(NUMPY[codes.type])
    exact = np.round(values.astype(np.float64) / codes.scale) + codes.zero_point
    return exact.clip(info.min, info.max).astype(info.dtype)


def write(rewriter: Rewriter, graph: Graph, plan: Plan) -> bytes:
    """The model with every tensor represented as the plan says."""
    return _Writer(rewriter, graph, plan).written()


def spell_out(rewriter: Rewriter, graph: Graph, plan: Plan) -> bytes:
    """The plan's own arithmetic in float operators: activations quantized and brought back, weights as numbers."""
    return _Spelling(rewriter, graph, plan).written()


@dataclass(frozen=True)
class _Writer:
    rewriter: Rewriter
    graph: Graph
    plan: Plan

    def written(self) -> bytes:
        """Every operator in turn, with what it reads converted in front of it."""
        native: dict[int, int] = {}  # where the source's tensors are in the new graph
        for index in self.given_as:
            native[index] = self._given(index)
        for operator in self.graph.operators:
            inputs = list(operator.inputs)
            for position, tensor in self.graph.floats(operator):
                inputs[position] = self._read(operator, position, tensor.index, native)
            if (layer := self.layers.get(self.graph.node(operator))) is not None:
                self._write_layer(operator, layer, inputs)
            outputs = [self._result(operator, index, native) for index in operator.outputs]
            copied = self.rewriter.source[operator.index]
            copied.inputs, copied.outputs = inputs, outputs
            self.rewriter.graph.operators.append(copied)
        for index in self.graph.outputs:
            if native.get(index, index) != index:  # the model's result keeps its place and name
                self._hand_out(index, self._last(index, native[index]))
        return self.rewriter.built()

    def _last(self, index: int, made: int) -> int:
        """The codes of a result of the model, from what its operator makes."""
        return made

    @cached_property
    def given_as(self) -> Mapping[int, Codes]:
        """Inputs of the model that come as codes, and as which operators read them."""
        return given_as(self.graph, self.plan)

    def _given(self, index: int) -> int:
        """An input of the model as the codes that operators read; TensorFlow Lite's are signed."""
        codes = self.given_as[index]
        self.rewriter.as_codes(index, at_the_end(codes, self.plan.io))
        return index if at_the_end(codes, self.plan.io) == codes else self.rewriter.converted(index, codes)

    def _hand_out(self, index: int, made: int) -> None:
        """A result of the model from its codes."""
        if self.plan.io == "float":
            self.rewriter.operator("DEQUANTIZE", [made], [index])
            return
        codes = self.made_as[self.graph.tensors[index].name]
        self.rewriter.as_codes(index, at_the_end(codes, self.plan.io))
        self.rewriter.operator("QUANTIZE", [made], [index])

    @cached_property
    def layers(self) -> Mapping[str, LayerPlan]:
        """Layers that change, by node."""
        return {layer.node: layer for layer in self.plan.layers if layer.weights}

    @cached_property
    def read_as(self) -> Mapping[tuple[str, int], Codes]:
        """The codes that inputs of operators are read as."""
        return {
            (edge.node, edge.index): codes_of(activation)
            for activation in self.plan.activations
            for edge in activation.site.readers
        }

    @cached_property
    def made_as(self) -> Mapping[str, Codes]:
        """The codes of tensors that operators running on codes make, or that come as codes."""
        return made_as(self.graph, self.plan, self._on_codes)

    def runs_on_codes(self, operator: Operator) -> bool:
        """Everything that it reads and makes has codes in the plan."""
        return self.graph.node(operator) in self._on_codes

    @cached_property
    def _on_codes(self) -> frozenset[str]:
        return on_codes(self.graph, self.plan)

    def _read(self, operator: Operator, position: int, index: int, native: Mapping[int, int]) -> int:
        """The tensor in the representation that the operator reads."""
        tensor = self.graph.tensors[index]
        place = native.get(index, index)
        if operator.name in ANY_REPRESENTATION:
            return place
        wanted = self.read_as.get((self.graph.node(operator), position))
        if tensor.data is not None:
            return place if wanted is None else self._constant(index, wanted)
        made = self.made_as.get(tensor.name)
        if wanted is None:
            return place if made is None else self.rewriter.converted(place, None)
        codes = place if made == wanted else self.rewriter.converted(place, wanted)
        return codes if self.runs_on_codes(operator) else self.rewriter.converted(codes, None)

    def _result(self, operator: Operator, index: int, native: dict[int, int]) -> int:
        """Where the operator writes: codes take the place of the tensor, or lie beside a result of the model."""
        codes = self.made_as.get(self.graph.tensors[index].name) if index >= 0 else None
        if codes is None:
            return index
        if index in self.graph.outputs and at_the_end(codes, self.plan.io) != codes:
            native[index] = self.rewriter.tensor(f"{self.graph.tensors[index].name}_codes", index, codes)
            return native[index]
        self.rewriter.as_codes(index, codes)
        return index

    def _constant(self, index: int, codes: Codes) -> int:
        """A constant operand as codes."""
        tensor = self.graph.tensors[index]
        assert tensor.data is not None
        array = rounded(tensor.data, codes)
        scale, zero_point = np.array([codes.scale]), np.array([codes.zero_point])
        return self.rewriter.constant(f"{tensor.name}_codes", array, codes.type, scale, zero_point)

    def _write_layer(self, operator: Operator, layer: LayerPlan, inputs: list[int]) -> None:
        kind, weight = KINDS[operator.name], layer.weights[0]
        integer = self.runs_on_codes(operator)
        if integer and kind.kind == "embedding":
            return  # its table is what it reads, and was written as that
        if weight.codes is None:
            inputs[kind.weight] = self._half(weight, operator)
        else:
            codes = self._weight(layer, weight, weight.codes, operator)
            direct = integer or layer.dynamic
            inputs[kind.weight] = codes if direct else self._brought_back(codes, weight.name)
        if layer.dynamic:
            assert layer.activations is not None
            self.rewriter.source[
                operator.index
            ].builtinOptions.asymmetricQuantizeInputs = not layer.activations.symmetric
        if layer.bias is not None and kind.bias is not None:
            wide = integer and layer.activations is not None and find(layer.activations.qtype).bits == 16
            inputs[kind.bias] = self._bias(layer, layer.bias, integer, wide)

    def _weight(self, layer: LayerPlan, weight: WeightPlan, q: QTensor, operator: Operator) -> int:
        kind = KINDS[operator.name]
        if q.qtype.name not in OURS or q.group_size is not None or q.scale is None:
            raise InputError(
                f"layer {layer.name!r}: {weight.scheme} cannot be written to .tflite; allowed are fp16, and int8 or "
                "int4 per tensor or channel"
            )
        axis = 0 if q.channel_axis is None else kind.order[q.channel_axis]
        zero_point = None if q.zero_point is None else q.zero_point.numpy()
        stored = as_stored(q.codes.numpy(), kind)
        return self.rewriter.constant(
            weight.name, stored, OURS[q.qtype.name], q.scale.numpy(), zero_point, axis
        )

    def _half(self, weight: WeightPlan, operator: Operator) -> int:
        if weight.scheme.qtype != "fp16":
            raise InputError(
                f"weight {weight.name!r}: {weight.scheme.qtype} cannot be written to .tflite; take fp16 for 16 bits"
            )
        values = as_stored(weight.values, KINDS[operator.name]).clip(-HALF_MAX, HALF_MAX)
        stored = self.rewriter.constant(weight.name, values.astype(np.float16), FLOAT16)
        return self._brought_back(stored, weight.name)

    def _brought_back(self, stored: int, name: str) -> int:
        wide = self.rewriter.tensor(f"{name}_f32", stored, None)
        self.rewriter.operator("DEQUANTIZE", [stored], [wide])
        return wide

    def _bias(self, layer: LayerPlan, bias: BiasPlan, integer: bool, wide: bool) -> int:
        if not integer:
            return self.rewriter.constant(bias.name, bias.values, FLOAT32)
        if bias.scale is None:
            raise InputError(
                f"layer {layer.name!r}: its bias does not fit integer codes; keep it in float: --exclude"
            )
        codes = np.round(bias.values.astype(np.float64) / bias.scale)
        weight = layer.weights[0].codes
        scale = bias.scale if weight is not None and weight.channel_axis is not None else bias.scale[:1]
        return self.rewriter.constant(
            bias.name, codes.astype(np.int64 if wide else np.int32), INT64 if wide else INT32, scale
        )


class _Spelling(_Writer):
    @cached_property
    def given_as(self) -> Mapping[int, Codes]:
        """Nothing: it takes and gives floats."""
        return {}

    @cached_property
    def made_as(self) -> Mapping[str, Codes]:
        """Nothing: codes are brought back before anything reads them."""
        return {}

    def _hand_out(self, index: int, made: int) -> None:
        self.rewriter.operator("DEQUANTIZE", [made], [index])

    def runs_on_codes(self, operator: Operator) -> bool:
        """Nothing does: codes are brought back before anything reads them."""
        return False

    @cached_property
    def results(self) -> Mapping[int, Codes]:
        """Results of the model that have codes of their own."""
        found: dict[int, Codes] = {}
        for activation in self.plan.activations:
            index = self.graph.by_name[activation.site.tensor].index
            if index in self.graph.outputs and index in self.graph.producers:
                found.setdefault(index, codes_of(activation))
        return found

    def _result(self, operator: Operator, index: int, native: dict[int, int]) -> int:
        if index not in self.results:
            return index
        native[index] = self.rewriter.tensor(f"{self.graph.tensors[index].name}_exact", index, None)
        return native[index]

    def _last(self, index: int, made: int) -> int:
        return self.rewriter.converted(made, self.results[index])

    def _constant(self, index: int, codes: Codes) -> int:
        return self.rewriter.converted(super()._constant(index, codes), None)

    def _write_layer(self, operator: Operator, layer: LayerPlan, inputs: list[int]) -> None:
        if layer.dynamic:
            return super()._write_layer(operator, layer, inputs)
        kind, weight = KINDS[operator.name], layer.weights[0]
        numbers = (
            weight.values.clip(-HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)
            if weight.codes is None
            else weight.codes.dequantize().numpy()
        )
        inputs[kind.weight] = self.rewriter.constant(weight.name, as_stored(numbers, kind), FLOAT32)
        if layer.bias is not None and kind.bias is not None:
            inputs[kind.bias] = self.rewriter.constant(layer.bias.name, layer.bias.values, FLOAT32)


def tap(rewriter: Rewriter, graph: Graph, tensors: Collection[str]) -> bytes:
    """The model with these tensors, as numbers, as further outputs by their own names."""
    from ai_edge_litert.schema_py_generated import TensorMapT

    rewriter.graph.operators = rewriter.source
    signature = rewriter.signature()
    called = {entry.name.decode() for entry in signature.outputs}
    for name in tensors:
        tensor = graph.by_name[name]
        index = tensor.index if tensor.is_float else rewriter.converted(tensor.index, None)
        if index not in rewriter.graph.outputs:
            rewriter.graph.outputs = [*rewriter.graph.outputs, index]
        if name not in called:
            entry = TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), index
            signature.outputs.append(entry)
    return rewriter.built()
