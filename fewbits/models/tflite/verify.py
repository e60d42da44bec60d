"""Read a written file back and hold it against the plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from fewbits.errors import VerificationError
from fewbits.models.tflite.apply import HALF_MAX, at_the_end, codes_of, made_as, on_codes, rounded
from fewbits.models.tflite.graph import Graph, Operator, graph_of
from fewbits.models.tflite.layers import KINDS, canonical
from fewbits.models.tflite.load import named, parse
from fewbits.models.tflite.rewrite import Codes, unpacked
from fewbits.models.tflite.types import FLOAT32, INT4, NAMES, NUMPY, OURS
from fewbits.planning.model_info import ModelInfo
from fewbits.planning.plan import ActivationPlan, BiasPlan, LayerPlan, Plan, WeightPlan

WRITTEN = ("", "_codes")
"""What the name of an operator's result may have got behind it."""


def read_back(path: Path, plan: Plan, info: ModelInfo, source: Graph) -> dict[str, int]:
    """Check that codes, scales, zero points, inputs and outputs are in the file as planned, and the rest as it was.

    Args:
        path: the written file.
        plan: what it was written from.
        info: the model's inputs and outputs.
        source: the graph that the plan was made for.

    Returns:
        bytes of the file's constants per dtype.

    Raises:
        VerificationError: something differs; the file and the tensor are named.
    """
    stored = _Stored(path, source)
    for layer in plan.layers:
        if layer.weights:
            stored.check_layer(layer)
    for activation in plan.activations:
        stored.check_activation(activation)
    stored.check_made(plan)
    stored.check_rest(plan)
    for which, wanted in (("inputs", info.inputs), ("outputs", info.outputs)):
        expected, found = [one.name for one in wanted], [name for name, _ in named(stored.model, which)]
        if expected != found:
            raise VerificationError(f"{path}: {which} are {found}, but the model's are {expected}")
    return bytes_by_dtype(path)


class _Stored:
    """A written file, asked for what its operators read."""

    def __init__(self, path: Path, source: Graph) -> None:
        self.path, self.source = path, source
        self.model = parse(path.read_bytes(), path)
        self.graph = graph_of(self.model)
        self.tensors = self.model.subgraphs[0].tensors

    def check_layer(self, layer: LayerPlan) -> None:
        """Its weight and its bias."""
        operator, kind = self._operator(layer.node), KINDS[layer.op]
        self._check_weight(layer.weights[0], operator.inputs[kind.weight], layer.op)
        if layer.bias is not None and kind.bias is not None:
            self._check_bias(layer.bias, operator.inputs[kind.bias])

    def check_activation(self, plan: ActivationPlan) -> None:
        """Whatever reads it reads codes with the planned scale and zero point."""
        for edge in plan.site.readers:
            place = self._before_dequantize(self._operator(edge.node).inputs[edge.index])
            self._check_codes(plan, place)
            constant = self.source.by_name[plan.site.tensor].data
            if constant is not None:
                self._same(plan.site.tensor, self._numbers(place), rounded(constant, codes_of(plan)))

    def check_made(self, plan: Plan) -> None:
        """What runs on codes makes codes; what the model takes and gives is floats, or the codes asked for."""
        made = made_as(self.source, plan, on_codes(self.source, plan))
        for name, codes in made.items():
            producer = self.source.producers.get(self.source.by_name[name].index)
            if producer is not None:
                position = producer.outputs.index(self.source.by_name[name].index)
                place = self._operator(self.source.node(producer)).outputs[position]
                self._check_tensor(name, place, codes)
        for index in (*self.graph.inputs, *self.graph.outputs):
            name, tensor = self.graph.tensors[index].name, self.tensors[index]
            wanted = at_the_end(made[name], plan.io) if name in made else None
            if wanted is not None:
                self._check_tensor(name, index, wanted)
            elif self.source.by_name[name].is_float and tensor.type != FLOAT32:
                raise VerificationError(f"{self.path}: {name!r} is {NAMES.get(tensor.type)}, and not float32")

    def check_rest(self, plan: Plan) -> None:
        """Constants that are in no plan are what they were."""
        changed = set(plan.weights) | {layer.bias.name for layer in plan.layers if layer.bias is not None}
        for name, tensor in self.graph.by_name.items():
            before = self.source.by_name.get(name)
            if name in changed or before is None or before.data is None:
                continue
            if tensor.data is None or not np.array_equal(tensor.data, before.data, equal_nan=True):
                raise VerificationError(f"{self.path}: constant {name!r} is not what it was")

    def _operator(self, node: str) -> Operator:
        for end in WRITTEN:
            found = self.graph.nodes.get(f"{node}{end}")
            if found is not None and found.name not in ("QUANTIZE", "DEQUANTIZE"):
                return found
        raise VerificationError(f"{self.path}: the operator that makes {node!r} is missing")

    def _before_dequantize(self, place: int) -> int:
        made = self.graph.producers.get(place)
        return made.inputs[0] if made is not None and made.name == "DEQUANTIZE" else place

    def _check_codes(self, plan: ActivationPlan, place: int) -> None:
        self._check_tensor(plan.site.tensor, place, codes_of(plan))

    def _check_tensor(self, name: str, place: int, wanted: Codes) -> None:
        tensor = self.tensors[place]
        parameters = tensor.quantization
        scale = None if parameters is None or parameters.scale is None else list(parameters.scale)
        zero_point = (
            None if parameters is None or parameters.zeroPoint is None else list(parameters.zeroPoint)
        )
        if (tensor.type, scale, zero_point) != (wanted.type, [wanted.scale], [wanted.zero_point]):
            raise VerificationError(
                f"{self.path}: tensor {name!r} is {NAMES.get(tensor.type)} with scale {scale} and zero "
                f"point {zero_point}, and not {NAMES[wanted.type]} with {wanted.scale} and {wanted.zero_point}"
            )

    def _check_weight(self, plan: WeightPlan, place: int, op: str) -> None:
        place = self._before_dequantize(place)
        tensor, kind, q = self.tensors[place], KINDS[op], plan.codes
        wanted = OURS["fp16" if q is None else q.qtype.name]
        if tensor.type != wanted:
            raise VerificationError(
                f"{self.path}: constant {plan.name!r} is {NAMES.get(tensor.type)}, and not {NAMES[wanted]}"
            )
        array = canonical(self._numbers(place), kind)
        if q is None:
            expected = plan.values.clip(-HALF_MAX, HALF_MAX).astype(np.float16)
        else:
            assert q.scale is not None
            expected = q.codes.numpy()
            axis = 0 if q.channel_axis is None else kind.order[q.channel_axis]
            self._same(plan.name, tensor.quantization.scale, q.scale.numpy().reshape(-1))
            zero_point = (
                np.zeros(q.scale.numel()) if q.zero_point is None else q.zero_point.numpy().reshape(-1)
            )
            self._same(plan.name, tensor.quantization.zeroPoint, zero_point)
            if tensor.quantization.quantizedDimension != axis:
                raise VerificationError(
                    f"{self.path}: constant {plan.name!r} has its scales along another axis"
                )
        self._same(plan.name, array, expected)

    def _check_bias(self, plan: BiasPlan, place: int) -> None:
        array = self._numbers(place)
        if array.dtype.kind == "f" or plan.scale is None:
            self._same(plan.name, array, plan.values)
            return
        self._same(plan.name, array, np.round(plan.values.astype(np.float64) / plan.scale))
        scale = np.asarray(self.tensors[place].quantization.scale)
        self._same(plan.name, scale, plan.scale.astype(np.float32)[: scale.size])

    def _numbers(self, place: int) -> np.ndarray:
        tensor = self.tensors[place]
        data = self.model.buffers[tensor.buffer].data
        if data is None:
            raise VerificationError(f"{self.path}: constant {tensor.name.decode()!r} has no numbers")
        flat = np.frombuffer(data, np.uint8)
        shape = tuple(tensor.shape)
        return unpacked(flat, shape) if tensor.type == INT4 else flat.view(NUMPY[tensor.type]).reshape(shape)

    def _same(self, name: str, found: np.ndarray, planned: np.ndarray) -> None:
        if np.shape(found) != planned.shape or not np.array_equal(found, planned):
            raise VerificationError(f"{self.path}: constant {name!r} differs from the plan")


def bytes_by_dtype(path: Path) -> dict[str, int]:
    """Bytes of a file's constants per dtype, the most first; those that several tensors share count once."""
    model = parse(path.read_bytes(), path)
    found: Counter[str] = Counter()
    seen: set[int] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and tensor.buffer not in seen:
                seen.add(tensor.buffer)
                found[NAMES.get(tensor.type, "other")] += len(data)
    return dict(found.most_common())
