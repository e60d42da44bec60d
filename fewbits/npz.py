"""Arrays of an ``.npz`` as a stream: read a few samples at a time, never whole."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewbits.errors import InputError

ROW_BYTES = 1 << 22  # about this much of every array is read at a time

UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What ``zipfile`` and numpy raise for a damaged, encrypted or foreign archive."""

HasRows = Callable[[str, tuple[int, ...]], bool]
"""Whether the array of that name and shape has one entry for each sample along its first axis."""


@dataclass(frozen=True)
class Folder:
    """The arrays of an archive whose names begin with ``name/``, by what comes behind it."""

    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.path}, {self.name}"


def names(path: Path) -> list[str]:
    """Of the archive's arrays. Raises InputError where it is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename.removesuffix(".npy") for info in archive.infolist()]
    except UNREADABLE as error:
        raise InputError(f"{path}: not an .npz file ({error}); write it with numpy.savez") from error


def read(
    source: Path | Folder, only: str | None, apart: tuple[str, ...], has_rows: HasRows
) -> Iterator[dict[str, np.ndarray]]:
    """The archive's arrays in blocks of samples; what has none is read once and comes with every block.

    Args:
        source: the archive, or a part of it.
        only: what the only array is called in the blocks, whatever it is called in the archive.
        apart: names that do not count as that array.
        has_rows: tells which arrays are cut into blocks.

    Raises:
        InputError: not an archive, an array that cannot be read or is none of numbers, or that has other samples than
            the rest, or none.
    """
    path, prefix = (source.path, f"{source.name}/") if isinstance(source, Folder) else (source, "")
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise InputError(f"{path}: not an .npz file ({error}); write it with numpy.savez") from error
    with archive:
        members = {
            info.filename.removesuffix(".npy").removeprefix(prefix): info
            for info in archive.infolist()
            if info.filename.startswith(prefix)
        }
        arrays = [name for name in members if name not in apart]
        names = {name: name for name in members}
        if only is not None and len(arrays) == 1:
            names[arrays[0]] = only
        streams = {names[name]: _NpyStream(path, name, archive, member) for name, member in members.items()}
        rows = {name: stream for name, stream in streams.items() if has_rows(name, stream.shape)}
        lengths = {stream.name: stream.rows for stream in rows.values()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{path}: arrays differ in their number of samples: {lengths}")
        if not arrays or not max(lengths.values(), default=1):
            raise InputError(f"{path}: no samples in it; give at least one")
        whole = {name: stream.read_whole() for name, stream in streams.items() if name not in rows}
        if not rows:
            yield whole
            return
        total = max(lengths.values())
        step = max(1, ROW_BYTES // max(stream.row_bytes for stream in rows.values()))
        for start in range(0, total, step):
            count = min(step, total - start)
            yield {**whole, **{name: stream.read(count) for name, stream in rows.items()}}


def shapes(path: Path) -> list[tuple[int, ...]]:
    """Of the archive's arrays, from their headers. Raises InputError where one cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [_NpyStream(path, one.filename, archive, one).shape for one in archive.infolist()]
    except UNREADABLE as error:
        raise InputError(f"{path}: not an .npz file ({error}); write it with numpy.savez") from error


class _NpyStream:
    """Reads one array of an ``.npz`` a few rows at a time."""

    def __init__(self, path: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self.path, self.name = path, name
        try:
            self.file = file = archive.open(member)
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            self.shape, self.by_columns, self.dtype = read_header(file)
        except UNREADABLE as error:
            raise InputError(f"{path}: array {name!r} cannot be read ({error})") from error
        if self.dtype.hasobject:
            raise self._wrong("Python objects")

    @property
    def rows(self) -> int:
        """The number of samples. Raises InputError for an array that cannot be cut into samples as it lies there."""
        if not self.shape or self.by_columns:
            raise self._wrong("column order" if self.shape else "no sample axis")
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample, at least 1."""
        return max(1, int(np.prod(self.shape[1:])) * self.dtype.itemsize)

    def read(self, rows: int) -> np.ndarray:
        """The next rows."""
        return self._read((rows, *self.shape[1:]))

    def read_whole(self) -> np.ndarray:
        """All of it."""
        array = self._read(self.shape[::-1] if self.by_columns else self.shape)
        return array.T if self.by_columns else array

    def _wrong(self, what: str) -> InputError:
        return InputError(
            f"{self.path}: array {self.name!r} has {what}; save a plain row-major array, samples first"
        )

    def _read(self, shape: tuple[int, ...]) -> np.ndarray:
        wanted = int(np.prod(shape)) * self.dtype.itemsize
        try:
            data = self.file.read(wanted)
        except UNREADABLE as error:
            raise InputError(f"{self.path}: array {self.name!r} cannot be read ({error})") from error
        if len(data) < wanted:
            raise InputError(f"{self.path}: array {self.name!r} is cut short; write the file again")
        return np.frombuffer(data, self.dtype).reshape(shape)
