"""A copy of a model whose main subgraph is written anew: tensors in other representations, conversions in between."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits.errors import InputError
from fewbits.models.tflite.load import main_signature, name_tensors
from fewbits.models.tflite.types import FLOAT32, INT4, INT8, INT16

if TYPE_CHECKING:
    from ai_edge_litert.schema_py_generated import ModelT, OperatorT, SignatureDefT, TensorT

FILE_LIMIT = (1 << 31) - (1 << 16)  # what a flatbuffer can address


@dataclass(frozen=True)
class Codes:
    """An activation's codes: ``real = scale * (code - zero_point)``; ``type`` is schema.fbs's."""

    type: int
    scale: float
    zero_point: int


class Rewriter:
    """Collects the new operators of the main subgraph in order, and the tensors between them.

    Constants and tensors of the source keep their places and names; what is added comes behind them. What nothing
    refers to at the end is left out.
    """

    def __init__(self, model: ModelT) -> None:
        self.model = copied(model)
        self.graph = self.model.subgraphs[0]
        self.source = list(self.graph.operators)
        self.graph.operators = []
        self._opcodes: dict[tuple[str, int], int] = {}
        self._converted: dict[tuple[int, Codes | None], int] = {}
        self._constants: dict[tuple[object, ...], int] = {}
        self._buffers: dict[bytes, int] = {}

    def tensor(self, name: str, like: int, codes: Codes | None) -> int:
        """A new activation, shaped like another, as codes or as floats."""
        from ai_edge_litert.schema_py_generated import TensorT

        shaped = self.graph.tensors[like]
        tensor = TensorT()
        tensor.shape, tensor.shapeSignature = shaped.shape, shaped.shapeSignature
        tensor.hasRank, tensor.name = shaped.hasRank, name.encode()
        self._represent(tensor, codes)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def as_codes(self, index: int, codes: Codes | None) -> None:
        """Make a tensor of the source, which has floats, one of codes."""
        self._represent(self.graph.tensors[index], codes)

    def constant(
        self,
        name: str,
        array: np.ndarray,
        type: int,
        scale: np.ndarray | None = None,
        zero_point: np.ndarray | None = None,
        axis: int = 0,
    ) -> int:
        """A constant; of codes with their scale, or their scales along ``axis``. The same is not stored twice."""
        from ai_edge_litert.schema_py_generated import TensorT

        flat = _packed(array) if type == INT4 else np.ascontiguousarray(array)
        data = flat.reshape(-1).view(np.uint8)
        scales = None if scale is None else scale.reshape(-1)
        zeros = np.zeros(0 if scales is None else scales.size, np.int64)
        zeros = zeros if zero_point is None else zero_point.reshape(-1)
        content = hashlib.sha256(data.tobytes()).digest()
        key = (
            name,
            content,
            array.shape,
            type,
            None if scales is None else scales.tobytes(),
            zeros.tobytes(),
            axis,
        )
        if key not in self._constants:
            tensor = TensorT()
            tensor.shape, tensor.type = list(array.shape), type
            tensor.buffer, tensor.name = self._buffer(content, data), name.encode()
            tensor.hasRank = True
            if scales is not None:
                tensor.quantization = _parameters(scales, zeros, axis)
            self.graph.tensors.append(tensor)
            self._constants[key] = len(self.graph.tensors) - 1
        return self._constants[key]

    def _buffer(self, content: bytes, data: np.ndarray) -> int:
        from ai_edge_litert.schema_py_generated import BufferT

        if content not in self._buffers:
            buffer = BufferT()
            buffer.data = data
            self.model.buffers.append(buffer)
            self._buffers[content] = len(self.model.buffers) - 1
        return self._buffers[content]

    def converted(self, index: int, codes: Codes | None) -> int:
        """The same tensor in another representation, by an operator in front of what comes next; made once."""
        key = (index, codes)
        if key not in self._converted:
            name = self.graph.tensors[index].name.decode()
            made = self.tensor(f"{name}_f32" if codes is None else f"{name}_codes", index, codes)
            self.operator("DEQUANTIZE" if codes is None else "QUANTIZE", [index], [made])
            self._converted[key] = made
        return self._converted[key]

    def operator(self, name: str, inputs: list[int], outputs: list[int], version: int = 1) -> OperatorT:
        """Append a new operator without options."""
        from ai_edge_litert.schema_py_generated import OperatorT

        operator = OperatorT()
        operator.inputs, operator.outputs = inputs, outputs
        operator.opcodeIndex = self._opcode(name, version)
        self.graph.operators.append(operator)
        return operator

    def signature(self) -> SignatureDefT:
        """The main subgraph's; made, with its tensors' names, where there is none."""
        from ai_edge_litert.schema_py_generated import SignatureDefT, TensorMapT

        if (found := main_signature(self.model)) is not None:
            return found
        made = SignatureDefT()
        made.signatureKey, made.subgraphIndex = b"serving_default", 0
        for which in ("inputs", "outputs"):
            entries = []
            for index in getattr(self.graph, which):
                entry = TensorMapT()
                entry.name, entry.tensorIndex = self.graph.tensors[index].name, index
                entries.append(entry)
            setattr(made, which, entries)
        self.model.signatureDefs = [*(self.model.signatureDefs or []), made]
        return made

    def built(self) -> bytes:
        """The file. Raises InputError as :func:`finished`."""
        return finished(self.model)

    def _represent(self, tensor: TensorT, codes: Codes | None) -> None:
        tensor.type = FLOAT32 if codes is None else codes.type
        tensor.quantization = None
        if codes is not None:
            scale, zero_point = np.array([codes.scale], np.float32), np.array([codes.zero_point], np.int64)
            tensor.quantization = _parameters(scale, zero_point, 0)

    def _opcode(self, name: str, version: int) -> int:
        from ai_edge_litert.schema_py_generated import BuiltinOperator, OperatorCodeT

        if (name, version) not in self._opcodes:
            code = OperatorCodeT()
            code.builtinCode = getattr(BuiltinOperator, name)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = version
            self.model.operatorCodes.append(code)
            self._opcodes[name, version] = len(self.model.operatorCodes) - 1
        return self._opcodes[name, version]


def codes_type(bits: int) -> int:
    """The type of activations' codes of that width."""
    return {8: INT8, 16: INT16}[bits]


def unpacked(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """4-bit integers, int8 [shape], from bytes that hold two each, the low half first."""
    both = np.stack([data << 4, data], axis=-1).astype(np.uint8).view(np.int8) >> 4
    count = int(np.prod(shape))
    return both.reshape(-1)[:count].reshape(shape)


def _packed(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1).astype(np.int8).view(np.uint8) & 15
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8)


def _parameters(scale: np.ndarray, zero_point: np.ndarray, axis: int) -> Any:
    from ai_edge_litert.schema_py_generated import QuantizationParametersT

    parameters = QuantizationParametersT()
    parameters.scale, parameters.zeroPoint = scale.astype(np.float32), zero_point.astype(np.int64)
    parameters.quantizedDimension = axis
    return parameters


def copied(model: ModelT) -> ModelT:
    """All but the constants' bytes, which are never changed in place."""
    memo: dict[int, Any] = {
        id(buffer.data): buffer.data for buffer in model.buffers if buffer.data is not None
    }
    return copy.deepcopy(model, memo)


def finished(model: ModelT) -> bytes:
    """A changed model as a file, without what nothing refers to. Raises InputError where it is too large for one."""
    from ai_edge_litert.tools import flatbuffer_utils

    _drop_unused(model)
    name_tensors(model)
    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if size > FILE_LIMIT:
        raise InputError(f"the model's constants have {size} bytes, and a .tflite file ends at 2 GiB")
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _drop_unused(model: ModelT) -> None:
    """Leave out tensors, constants and kinds of operators that nothing refers to any more."""
    kinds = sorted({operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators or []})
    model.operatorCodes = [model.operatorCodes[kind] for kind in kinds]
    place = {kind: number for number, kind in enumerate(kinds)}
    for number, graph in enumerate(model.subgraphs):
        for operator in graph.operators or []:
            operator.opcodeIndex = place[operator.opcodeIndex]
        if not number:
            _drop_tensors(model)
    used = {0} | {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {one.buffer for one in model.metadata or []}
    order = sorted(used)
    model.buffers = [model.buffers[index] for index in order]
    moved = {index: number for number, index in enumerate(order)}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = moved[tensor.buffer]
    for one in model.metadata or []:
        one.buffer = moved[one.buffer]


def _drop_tensors(model: ModelT) -> None:
    graph = model.subgraphs[0]
    used = set(graph.inputs) | set(graph.outputs)
    for operator in graph.operators:
        used |= {*operator.inputs, *operator.outputs, *(operator.intermediates or ())}
    order = sorted(used - {-1})
    moved = {index: number for number, index in enumerate(order)} | {-1: -1}
    graph.tensors = [graph.tensors[index] for index in order]
    graph.inputs = [moved[index] for index in graph.inputs]
    graph.outputs = [moved[index] for index in graph.outputs]
    for operator in graph.operators:
        operator.inputs = [moved[index] for index in operator.inputs]
        operator.outputs = [moved[index] for index in operator.outputs]
        if operator.intermediates is not None:
            operator.intermediates = [moved[index] for index in operator.intermediates]
    for signature in model.signatureDefs or []:
        if not signature.subgraphIndex:
            for entry in (*signature.inputs, *signature.outputs):
                entry.tensorIndex = moved[entry.tensorIndex]
