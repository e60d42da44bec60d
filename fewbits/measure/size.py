"""The files of an artifact on disk: how many bytes they are, and which."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewbits.errors import InputError


def artifact_bytes(path: str | Path) -> int:
    """The bytes of a model file and of every file its weights lie in. InputError where one is missing."""
    return sum(file.stat().st_size for file in artifact_files(path))


def artifact_sha256(path: str | Path) -> str:
    """Of a model file and then of every file its weights lie in, in hexadecimal. InputError where one is missing."""
    digest = hashlib.sha256()
    for file in artifact_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def artifact_files(path: str | Path) -> tuple[Path, ...]:
    """The files a model is made of, the model file first, each once.

    An `.onnx` file brings its external data, an OpenVINO `.xml` its `.bin`; any other file is alone.
    InputError where a file is missing, or where an `.onnx` file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    files = [path]
    if path.suffix == ".onnx":
        files += [path.parent / location for location in _external_locations(path)]
    elif path.suffix == ".xml":
        files.append(path.with_suffix(".bin"))
    for file in files:
        if not file.is_file():
            raise InputError(f"{path} keeps weights in {file}, which is missing")
    return tuple(files)


def _external_locations(path: Path) -> tuple[str, ...]:
    """The distinct external files that the tensors of an ONNX file name, relative to its folder."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise InputError(f"{path} is not a readable ONNX file: {error}") from error
    locations = {
        entry.value: None
        for tensor in _tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(locations)


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto inside a protobuf message: initializers, attributes, subgraphs, functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in (value,) if hasattr(value, "ListFields") else value:
            if field.message_type.name == "TensorProto":
                yield item
            else:
                yield from _tensors(item)
