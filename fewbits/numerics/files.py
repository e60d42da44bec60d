"""QTensors in a safetensors file: packed codes and parameters as tensors, everything else as metadata.

A tensor ``w`` is stored as ``w.codes`` (packed bytes, see ``packing``) and, where it has them, ``w.scale``,
``w.zero_point``, ``w.free_zero_point``, ``w.codebook`` and ``w.tensor_scale``. Scales of a row with a scale
type are stored as that type's bytes, zero points packed like codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.checks import naming
from fewbits.numerics.floats import decode_scale, encode_scale, scale_row
from fewbits.numerics.layout import Layout, layout_of
from fewbits.numerics.packing import pack, unpack
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.qtype import QType, find

_KEY = "fewbits.qtensors"
_FLOATS = ("free_zero_point", "codebook", "tensor_scale")
PARTS = ("codes", "scale", "zero_point", *_FLOATS)


def save(path: str | PathLike[str], tensors: Mapping[str, QTensor]) -> None:
    """Write QTensors to a safetensors file; an existing file is replaced.

    Raises InputError when the file cannot be written.
    """
    descriptions = {name: description_of(q.qtype, q.layout) for name, q in tensors.items()}
    stored = {
        f"{name}.{part}": value for name, q in tensors.items() for part, value in stored_parts(q).items()
    }
    try:
        save_file(stored, path, {_KEY: json.dumps(descriptions)})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be written: {error}") from None


def load(path: str | PathLike[str]) -> dict[str, QTensor]:
    """Read the QTensors of a file that ``save`` wrote.

    Raises InputError when it is not such a file, when a row of that name is registered here as something else
    or not at all, and when its parts disagree.
    """
    try:
        with safe_open(path, framework="pt") as file:
            descriptions = dict(json.loads((file.metadata() or {})[_KEY]))
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a file of QTensors: {error}") from None
    try:
        loaded = {}
        for name, description in descriptions.items():
            with naming(name):
                parts = {part: stored.pop(f"{name}.{part}", None) for part in PARTS}
                loaded[name] = _read(name, description, parts)
        if stored:
            raise InputError(f"it holds {', '.join(map(repr, stored))}, which its metadata does not describe")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return loaded


def description_of(row: QType, layout: Layout) -> dict[str, object]:
    """What tells how to read the parts of a QTensor, as JSON values."""
    return {
        "qtype": asdict(row),
        "shape": list(layout.shape),
        "channel_axis": layout.channel_axis,
        "group_size": layout.group_size,
    }


def described(description: Mapping) -> tuple[QType, Layout]:
    """The row and the layout that a description tells of; InputError where it is none or the row is another."""
    try:
        row = _same_row(description["qtype"])
        shape = tuple(int(extent) for extent in description["shape"])
        axis, group_size = description["channel_axis"], description["group_size"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"its description is not one that save writes: {error!r}") from None
    return row, layout_of(shape, axis, group_size)


def stored_parts(q: QTensor) -> dict[str, Tensor]:
    """The parts of a QTensor as a file holds them, on the CPU."""
    scale = q.scale
    if scale is not None and q.qtype.scale_type is not None:
        scale = encode_scale(scale, q.qtype, q.tensor_scale)
    parts = {part: getattr(q, part) for part in _FLOATS}
    parts |= {"codes": q.packed(), "scale": scale}
    parts["zero_point"] = None if q.zero_point is None else pack(q.zero_point, q.qtype)
    return {part: value.contiguous().cpu() for part, value in parts.items() if value is not None}


def restored_parameters(row: QType, layout: Layout, parts: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The parameters of a QTensor from the parts of a file, by its own names."""
    found = {part: parts.get(part) for part in ("scale", *_FLOATS)}
    scale, zero_point = found["scale"], parts.get("zero_point")
    if scale is not None and row.scale_type is not None:
        narrow = _of_dtype(scale, scale_row(row).code_dtype)
        found["scale"] = decode_scale(narrow, row, found["tensor_scale"])
    if zero_point is not None:
        found["zero_point"] = unpack(zero_point, row, layout.parameter_shape).int()
    return {part: value for part, value in found.items() if value is not None}


def _read(name: str, description: Mapping, parts: Mapping[str, Tensor | None]) -> QTensor:
    row, layout = described(description)
    codes = parts["codes"]
    if codes is None:
        raise InputError(f"it lacks '{name}.codes'")
    return QTensor(
        codes=unpack(codes, row, layout.shape),
        qtype=row,
        channel_axis=layout.channel_axis,
        group_size=layout.group_size,
        name=name,
        **restored_parameters(row, layout, parts),
    )


def _same_row(description: Mapping) -> QType:
    """The row of that name, if it is what it was when the file was written."""
    row = find(description["name"])
    if _as_json(row) != description:
        raise InputError(f"{row.name!r} was another format when this was written; register that one instead")
    return row


@lru_cache
def _as_json(row: QType) -> Any:
    return json.loads(json.dumps(asdict(row)))


def _of_dtype(scale: Tensor, dtype: torch.dtype) -> Tensor:
    if scale.dtype != dtype:
        raise InputError(f"scales are stored as {dtype}, got {scale.dtype}")
    return scale
