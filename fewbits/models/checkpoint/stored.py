"""safetensors files in slices: the header read and checked, a file laid out before a byte of it is computed.

The library reads and writes whole tensors through memory maps, which stay resident; here a tensor may be larger than
what may be held. The format: 8 bytes with the length of the header, the header (JSON), and the tensors without gaps
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewbits.errors import InputError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes whose numbers can be represented anew."""

LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: ``start`` is its first byte, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return nbytes(self.dtype, self.shape)


@dataclass(frozen=True)
class Shard:
    """A safetensors file: its path, what its header says of it, and its tensors in the order they lie."""

    path: Path
    metadata: Mapping[str, str]
    entries: tuple[Entry, ...]


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a tensor takes in a file."""
    return math.prod(shape) * DTYPES[dtype].itemsize


def read_header(path: Path) -> Shard:
    """Read and check what a safetensors file says of itself.

    Raises:
        InputError: the file is missing, cut short, no safetensors, or holds a dtype that is not known.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= min(LONGEST_HEADER, size - 8) else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not text:
        raise InputError(f"{path}: not a safetensors file, or cut short in its header; download it again")
    try:
        header = dict(json.loads(text))
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = sorted(
            (_entry(path, name, value, 8 + length) for name, value in header.items()), key=lambda e: e.start
        )
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: its header is not one of safetensors ({error})") from error
    end = 8 + length
    for entry in entries:
        if entry.start != end:
            raise InputError(f"{path}: damaged: there are gaps or overlaps before tensor {entry.name!r}")
        end += entry.nbytes
    if size < end:
        raise InputError(f"{path}: cut short: {size} bytes, and its header tells of {end}; download it again")
    if size > end:
        raise InputError(f"{path}: damaged: {size - end} bytes follow its last tensor")
    return Shard(path, metadata, tuple(entries))


def _entry(path: Path, name: str, value: Any, base: int) -> Entry:
    dtype, shape = value["dtype"], tuple(value["shape"])
    if dtype not in DTYPES:
        raise InputError(f"{path}: tensor {name!r} has the dtype {dtype!r}; known are {', '.join(DTYPES)}")
    begin, end = value["data_offsets"]
    whole = all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end))
    if not whole or end - begin != nbytes(dtype, shape):
        raise InputError(
            f"{path}: damaged: tensor {name!r}, {dtype} {list(shape)}, lies at bytes {begin} to {end}"
        )
    return Entry(name, dtype, shape, base + begin)


def lay_out(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Shard:
    """Where tensors of these dtypes and shapes lie in a new file; the widest dtypes first, so that all are aligned."""
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name][0]].itemsize, name))
    at_zero, start = [], 0
    for name in order:
        at_zero.append(Entry(name, *tensors[name], start))
        start += at_zero[-1].nbytes
    base = 8 + len(_header(at_zero, metadata))
    return Shard(path, metadata, tuple(replace(entry, start=base + entry.start) for entry in at_zero))


def create(shard: Shard) -> None:
    """Write the header of a file that was laid out, and make the file as long as it will be."""
    base = min((entry.start for entry in shard.entries), default=0)
    header = _header([replace(entry, start=entry.start - base) for entry in shard.entries], shard.metadata)
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    with shard.path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        file.truncate(8 + len(header) + sum(entry.nbytes for entry in shard.entries))


def _header(at_zero: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """The header of entries that count from the end of it."""
    described: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for one in at_zero:
        offsets = [one.start, one.start + one.nbytes]
        described[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": offsets}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def read_bytes(path: Path, start: int, count: int) -> Tensor:
    """``count`` bytes of a file as a 1-D uint8 tensor of its own.

    Raises:
        InputError: the file cannot be read, or ends before them.
    """
    found = torch.empty(count, dtype=torch.uint8)
    view = found.numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < count and (more := file.readinto(view[done:])):
                done += more
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if done < count:
        raise InputError(f"{path}: became shorter while it was read")
    return found


def write_bytes(path: Path, start: int, values: Tensor) -> None:
    """Write a tensor's bytes into a file that is there, from ``start`` on."""
    view = as_bytes(values).numpy().data
    with path.open("r+b", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < len(view):
            done += file.write(view[done:])


def as_bytes(values: Tensor) -> Tensor:
    """The bytes of a tensor in order, 1-D uint8; a view where that is possible."""
    flat = values.reshape(-1)
    if flat.stride() != (1,):  # of a single element, any stride is contiguous
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
