"""Read a `.tflite` file into objects, and say in one line what is wrong with a file that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.errors import InputError
from fewbits.models.tflite.types import NUMPY
from fewbits.planning.model_info import Dim, TensorInfo

if TYPE_CHECKING:
    from ai_edge_litert.schema_py_generated import ModelT, SubGraphT, TensorT

IDENTIFIER = b"TFL3"


@dataclass(frozen=True)
class TFLiteSource:
    """A model as it was read: nothing in it is changed but that every tensor has a name of its own.

    Attributes:
        path: the file.
        model: the flatbuffer as objects; constants are views of the file's bytes.
        inputs, outputs: what the main subgraph takes and gives, called as its signature calls them.
        sha256, size_bytes: of the file.
    """

    path: Path
    model: ModelT
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    sha256: str
    size_bytes: int


def load(path: Path) -> TFLiteSource:
    """Read and check a `.tflite` file.

    Raises:
        InputError: the file is missing, not a TensorFlow Lite model, or cut short; or ai-edge-litert is not installed.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; MODEL is a path to a .tflite file")
    data = path.read_bytes()
    model = parse(data, path)
    graph = model.subgraphs[0]
    return TFLiteSource(
        path,
        model,
        tuple(_tensor_info(path, graph, *one) for one in named(model, "inputs")),
        tuple(_tensor_info(path, graph, *one) for one in named(model, "outputs")),
        hashlib.sha256(data).hexdigest(),
        len(data),
    )


def parse(data: bytes, path: Path) -> ModelT:
    """The flatbuffer as objects that can be changed. Raises InputError as :func:`load`; ``path`` is for messages."""
    utils = _utils()
    if data[4:8] != IDENTIFIER:
        raise InputError(f"{path}: not a TensorFlow Lite model (it lacks the mark TFL3); check the download")
    try:
        model = utils.read_model_from_bytearray(data)
        _check(model, len(data))
    except Exception as error:  # whatever reading past the end comes to
        raise InputError(
            f"{path}: not a readable TensorFlow Lite model ({str(error)[:120] or type(error).__name__}); it may be cut "
            "short: check the download, or convert it again"
        ) from error
    name_tensors(model)
    return model


def named(model: ModelT, which: str) -> Iterator[tuple[str, int]]:
    """Names and tensors of the main subgraph's ``inputs`` or ``outputs``, in its order."""
    graph = model.subgraphs[0]
    signature = main_signature(model)
    names = {} if signature is None else {one.tensorIndex: one.name for one in getattr(signature, which)}
    for index in getattr(graph, which):
        yield names.get(index, graph.tensors[index].name).decode(), index


def main_signature(model: ModelT) -> Any:
    """The signature of the main subgraph; None where there is none."""
    return next((one for one in model.signatureDefs or [] if not one.subgraphIndex), None)


def _check(model: ModelT, size: int) -> None:
    """What flatbuffers do not: that indices are of something, and that constants are all there."""
    if not model.subgraphs or not model.subgraphs[0].operators:
        raise ValueError("it has no operators")
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) > size:
            raise ValueError("a constant is larger than the file")
    for graph in model.subgraphs:
        tensors = len(graph.tensors)
        used = [*graph.inputs, *graph.outputs]
        for operator in graph.operators or []:
            used += [*operator.inputs, *operator.outputs]
            if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
                raise ValueError("an operator is of no kind")
        if any(not -1 <= index < tensors for index in used):
            raise ValueError("an operator reads a tensor that is not there")
        for tensor in graph.tensors:
            _check_tensor(tensor, model.buffers[tensor.buffer].data)


def _check_tensor(tensor: TensorT, data: Any) -> None:
    dtype = NUMPY.get(tensor.type)
    if data is None or dtype is None or tensor.sparsity is not None:
        return
    count = 1
    for dim in tensor.shape if tensor.shape is not None else ():
        count *= dim
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"constant {tensor.name!r} has {len(data)} bytes, and not {count * dtype.itemsize}")


def name_tensors(model: ModelT) -> None:
    """Give each tensor a name of its own, by which plans know it; the first of several keeps what it has."""
    taken: set[bytes] = set()
    for graph in model.subgraphs:
        for number, tensor in enumerate(graph.tensors):
            name = base = tensor.name or f"tensor{number}".encode()
            copy = 2
            while name in taken:
                name, copy = base + f"#{copy}".encode(), copy + 1
            taken.add(name)
            tensor.name = name


def _tensor_info(path: Path, graph: SubGraphT, name: str, index: int) -> TensorInfo:
    tensor = graph.tensors[index]
    dtype = NUMPY.get(tensor.type)
    if dtype is None:
        raise InputError(f"{path}: input or output {name!r} holds no numbers, which is not supported")
    shape = [] if tensor.shape is None else list(tensor.shape)
    signature = shape if tensor.shapeSignature is None else list(tensor.shapeSignature)
    dims: list[Dim] = []
    for position, dim in enumerate(signature):
        dims.append(int(dim) if dim >= 0 else "batch" if position == 0 else f"dim{position}")
    return TensorInfo(name, dtype.name, tuple(dims))


def _utils() -> Any:
    try:
        from ai_edge_litert.tools import flatbuffer_utils
    except ImportError as error:
        raise InputError("reading .tflite files needs LiteRT; run: pip install 'fewbits[tflite]'") from error
    return flatbuffer_utils
