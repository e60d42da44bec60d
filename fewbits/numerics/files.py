"""QTensors in a safetensors file: packed codes and parameters as tensors, everything else as metadata.

A tensor ``w`` is stored as ``w.codes`` (packed bytes, see ``packing``) and, where it has them, ``w.scale``,
``w.zero_point``, ``w.free_zero_point``, ``w.codebook`` and ``w.tensor_scale``. Scales of a row with a scale
type are stored as that type's bytes, zero points packed like codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewbits.errors import InputError
from fewbits.numerics.floats import decode_scale, encode_scale
from fewbits.numerics.layout import layout_of
from fewbits.numerics.packing import pack, unpack
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.qtype import find

_KEY = "fewbits.qtensors"


def save(path: str | PathLike[str], tensors: Mapping[str, QTensor]) -> None:
    """Write QTensors to a safetensors file; an existing file is replaced."""
    stored: dict[str, Tensor] = {}
    described = {}
    for name, q in tensors.items():
        described[name] = {
            "qtype": asdict(q.qtype),
            "shape": list(q.shape),
            "channel_axis": q.channel_axis,
            "group_size": q.group_size,
        }
        stored[f"{name}.codes"] = q.packed()
        if q.scale is not None:
            stored[f"{name}.scale"] = (
                q.scale if q.qtype.scale_type is None else encode_scale(q.scale, q.qtype, q.tensor_scale)
            )
        if q.zero_point is not None:
            stored[f"{name}.zero_point"] = pack(q.zero_point, q.qtype)
        for part in ("free_zero_point", "codebook", "tensor_scale"):
            value = getattr(q, part)
            if value is not None:
                stored[f"{name}.{part}"] = value
    on_cpu = {key: value.contiguous().cpu() for key, value in stored.items()}
    save_file(on_cpu, path, {_KEY: json.dumps(described)})


def load(path: str | PathLike[str]) -> dict[str, QTensor]:
    """Read the QTensors of a file that ``save`` wrote.

    Raises InputError when it is not such a file, when a row of that name is registered here as something else
    or not at all, and when its parts disagree.
    """
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})[_KEY])
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a file of QTensors: {error}") from None
    loaded = {}
    for name, description in described.items():
        try:
            loaded[name] = _read(name, description, stored)
        except KeyError as missing:
            raise InputError(f"{path}: tensor {name!r} lacks {missing}") from None
        except InputError as error:
            raise InputError(f"{path}: tensor {name!r}: {error}") from None
    return loaded


def _read(name: str, description: dict, stored: Mapping[str, Tensor]) -> QTensor:
    row = find(description["qtype"]["name"])
    if json.loads(json.dumps(asdict(row))) != description["qtype"]:
        raise InputError(f"{row.name!r} was another format when this was written; register that one instead")
    shape = tuple(description["shape"])
    axis, group_size = description["channel_axis"], description["group_size"]
    parameter_shape = layout_of(shape, axis, group_size, f"tensor {name!r}").parameter_shape
    tensor_scale = stored.get(f"{name}.tensor_scale")
    scale, zero_point = stored.get(f"{name}.scale"), stored.get(f"{name}.zero_point")
    if scale is not None and row.scale_type is not None:
        scale = decode_scale(scale, row, tensor_scale)
    return QTensor(
        codes=unpack(stored[f"{name}.codes"], row, shape),
        qtype=row,
        scale=scale,
        zero_point=None if zero_point is None else unpack(zero_point, row, parameter_shape).int(),
        free_zero_point=stored.get(f"{name}.free_zero_point"),
        codebook=stored.get(f"{name}.codebook"),
        tensor_scale=tensor_scale,
        channel_axis=axis,
        group_size=group_size,
        name=name,
    )
