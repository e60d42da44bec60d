"""The main subgraph as plain records: operators in order, tensors by name, who makes and who reads each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits.models.tflite.types import FLOAT32, NUMPY

if TYPE_CHECKING:
    from ai_edge_litert.schema_py_generated import ModelT


@dataclass(frozen=True)
class Tensor:
    """One tensor; ``data`` holds the numbers of a constant, ``is_float`` is float32.

    ``fixed``: no axis but the first can have another size than ``shape`` says.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    is_float: bool
    data: np.ndarray | None
    fixed: bool = True


@dataclass(frozen=True)
class Operator:
    """One operator: its builtin's name (or its own), tensors by index (-1 where one is left out), and its options."""

    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclass(frozen=True)
class Graph:
    """The main subgraph."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @cached_property
    def producers(self) -> Mapping[int, Operator]:
        """What makes each tensor; inputs and constants have none."""
        return {index: operator for operator in self.operators for index in operator.outputs}

    @cached_property
    def nodes(self) -> Mapping[str, Operator]:
        """Operators by the name that plans know them by."""
        return {self.node(operator): operator for operator in self.operators}

    @cached_property
    def by_name(self) -> Mapping[str, Tensor]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    def node(self, operator: Operator) -> str:
        """The operator's name in plans: that of its first result."""
        return self.tensors[operator.outputs[0]].name if operator.outputs else f"operator{operator.index}"

    def floats(self, operator: Operator) -> Iterator[tuple[int, Tensor]]:
        """The operator's float32 inputs with their positions, constants among them."""
        for position, index in enumerate(operator.inputs):
            if index >= 0 and self.tensors[index].is_float:
                yield position, self.tensors[index]

    def results(self, operator: Operator) -> tuple[Tensor, ...]:
        """The operator's float32 outputs."""
        return tuple(self.tensors[index] for index in operator.outputs if self.tensors[index].is_float)


def graph_of(model: ModelT) -> Graph:
    """The records of a model's main subgraph; constants are views of its buffers."""
    from ai_edge_litert.tools import flatbuffer_utils

    main = model.subgraphs[0]
    tensors = []
    for index, tensor in enumerate(main.tensors):
        shape = () if tensor.shape is None else tuple(int(dim) for dim in tensor.shape)
        data = model.buffers[tensor.buffer].data
        dtype = NUMPY.get(tensor.type)
        numbers = None
        if data is not None and dtype is not None and tensor.sparsity is None:
            numbers = np.frombuffer(bytes(data) if isinstance(data, list) else data, dtype).reshape(shape)
        is_float = tensor.type == FLOAT32 and tensor.sparsity is None
        fixed = tensor.shapeSignature is None or all(dim >= 0 for dim in tensor.shapeSignature[1:])
        tensors.append(Tensor(index, tensor.name.decode(), shape, is_float, numbers, fixed))
    operators = tuple(
        Operator(
            index,
            _called(
                flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex), model, operator.opcodeIndex
            ),
            tuple(int(one) for one in operator.inputs),
            tuple(int(one) for one in operator.outputs),
            operator.builtinOptions,
        )
        for index, operator in enumerate(main.operators)
    )
    return Graph(tuple(tensors), operators, tuple(main.inputs), tuple(main.outputs))


def _called(builtin: str, model: ModelT, code: int) -> str:
    custom = model.operatorCodes[code].customCode
    return custom.decode() if custom else builtin
