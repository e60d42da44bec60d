"""Read an ONNX file into onnx-ir, and say in one line what is wrong with a file that cannot be used."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.errors import InputError
from fewbits.models.onnx.bodies import all_graphs, all_nodes, inside
from fewbits.planning.model_info import Dim, TensorInfo

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAINS = ("", "ai.onnx")
MINIMUM_OPSET = 7


@dataclass(frozen=True)
class OnnxSource:
    """An ONNX model as it was read: nothing in it is changed.

    Attributes:
        path: the file.
        model: the graph; weights stay in the file (memory mapped) until they are asked for.
        inputs, outputs: what the graph takes and gives, without weights listed as inputs.
        sha256: of the file and then of its external data files, in order of their names.
        size_bytes: of the file and its external data.
    """

    path: Path
    model: ir.Model
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    sha256: str
    size_bytes: int


def load(path: Path) -> OnnxSource:
    """Read and check an ``.onnx`` file.

    Raises:
        InputError: the file is missing, not ONNX, too old, or incomplete (external data).
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    if not path.is_file():
        raise InputError(f"{path}: no such file; MODEL is a path to an .onnx file")
    refuse_pickle(path)
    try:
        model = ir.load(path)
    except Exception as error:
        raise InputError(
            f"{path}: not a readable ONNX model ({_innermost(error)}); export it again, or check the download"
        ) from error
    if not len(model.graph) or not model.graph.outputs:
        raise InputError(f"{path}: the ONNX graph is empty; the file may be truncated")
    opset = next((v for d, v in model.opset_imports.items() if d in DOMAINS), None)
    if opset is None or opset < MINIMUM_OPSET:
        raise InputError(
            f"{path}: opset {opset}; ONNX Runtime reads {MINIMUM_OPSET} and newer; export it again"
        )
    files = (path, *_external_files(path, model))
    passes.RemoveInitializersFromInputsPass()(model)
    return OnnxSource(
        path=path,
        model=model,
        inputs=tuple(_tensor_info(path, value) for value in model.graph.inputs),
        outputs=tuple(_tensor_info(path, value) for value in model.graph.outputs),
        sha256=_sha256(files),
        size_bytes=sum(file.stat().st_size for file in files),
    )


def refuse_pickle(path: Path) -> None:
    """Raise InputError where the file is a Python pickle (a legacy checkpoint): reading one can run any code."""
    with path.open("rb") as file:
        head = file.read(2)
    pickled = len(head) == 2 and head[0] == 0x80 and head[1] <= 5
    if not pickled and head == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith("data.pkl") for name in archive.namelist())
    if pickled:
        raise InputError(
            f"{path}: a Python pickle, which can run any code when it is read; load it yourself with "
            "torch.load(..., weights_only=True), and export the model to ONNX or save its weights as .safetensors"
        )


def initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Named constant tensors of the main graph and of every body inside it, or inside a function."""
    for graph in (*all_graphs(model.graph), *(body for f in model.functions.values() for body in inside(f))):
        yield from graph.initializers.values()


def constants(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every constant tensor of a model: initializers and what Constant nodes hold, wherever they are."""
    for value in initializers(model):
        if value.const_value is not None:
            yield value.const_value
    for graph in graph_and_functions(model):
        for node in all_nodes(graph):
            if node.op_type == "Constant" and "value" in node.attributes:
                yield node.attributes["value"].as_tensor()


def graph_and_functions(model: ir.Model) -> list[ir.Graph | ir.Function]:
    """The main graph, and the functions that nodes may call."""
    return [model.graph, *model.functions.values()]


def _external_files(path: Path, model: ir.Model) -> tuple[Path, ...]:
    import onnx_ir as ir

    files: set[Path] = set()
    for value in initializers(model):
        name, tensor = value.name, value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            file = Path(tensor.path)
            needed = (tensor.offset or 0) + (tensor.length or 0)
            if not file.is_file() or file.stat().st_size < needed:
                raise InputError(
                    f"{path}: the external data of weight {name!r} is missing or cut short; "
                    f"expected {needed} bytes in {file.name!r} beside the model"
                )
            files.add(file)
    return tuple(sorted(files))


def _tensor_info(path: Path, value: ir.Value) -> TensorInfo:
    if value.dtype is None or value.name is None:
        raise InputError(
            f"{path}: the input or output {value.name!r} is not a tensor; only tensors are supported"
        )
    dims: list[Dim] = []
    for position, dim in enumerate(value.shape or ()):
        dims.append(dim if isinstance(dim, int) else str(dim.value or f"dim{position}"))
    return TensorInfo(value.name, value.dtype.numpy().name, tuple(dims))


def _sha256(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
