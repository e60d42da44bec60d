"""The user's data as a stream of feeds, checked against the model's inputs; never read whole."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.errors import InputError
from fewbits.planning.model_info import ModelInfo, TensorInfo

Feeds = dict[str, np.ndarray]
LABELS = "labels"
UNKNOWN_DIM = 16  # the size given to a dynamic axis that no data tells

HELD_OUT_EVERY = 4  # without data of its own for scoring, every fourth sample is kept from calibration


@dataclass(frozen=True)
class Samples:
    """A stream of samples that can be run through any number of times.

    Attributes:
        name: what the user calls it (a file, or ``data``), for messages.
        inputs: the model's inputs, which every feed fits.
        open: starts a new pass over batches of any size, as (feeds, labels or None).
        keep: which sample numbers belong to this stream; None for all.
    """

    name: str
    inputs: tuple[TensorInfo, ...]
    open: Callable[[], Iterator[tuple[Feeds, np.ndarray | None]]]
    keep: Callable[[np.ndarray], np.ndarray] | None = None

    def split(self) -> tuple[Samples, Samples]:
        """One stream to calibrate with and one to score with, without a sample in common."""
        last = HELD_OUT_EVERY - 1
        return (
            replace(self, keep=lambda i: i % HELD_OUT_EVERY != last),
            replace(self, keep=lambda i: i % HELD_OUT_EVERY == last),
        )

    def batches(self, size: int) -> Iterator[tuple[Feeds, np.ndarray | None]]:
        """Feeds of exactly ``size`` samples, with their labels where the data has them.

        The last may have fewer; it is left out where ``size`` is the number that the model always takes.

        Raises:
            InputError: names, dtypes or shapes are not the model's; NaN or Inf in a sample (it is named); no data.
        """
        whole = size in {info.shape[0] for info in self.inputs if info.shape}
        given = False
        pending: list[tuple[Feeds, np.ndarray | None]] = []
        waiting, seen = 0, 0
        for feeds, labels in self.open():
            count = self._check(feeds, labels, seen)
            numbers = np.arange(seen, seen + count)
            seen += count
            if self.keep is not None:
                chosen = self.keep(numbers)
                feeds = {key: array[chosen] for key, array in feeds.items()}
                labels = None if labels is None else labels[chosen]
                count = int(chosen.sum())
            if not count:
                continue
            pending.append((feeds, labels))
            waiting += count
            while waiting >= size:
                batch, rest = _cut(_join(pending), size)
                yield batch
                given = True
                pending, waiting = ([rest], waiting - size) if waiting > size else ([], 0)
        if waiting and not whole:
            yield _join(pending)
        if waiting and whole and not given:
            raise InputError(
                f"{self.name}: {waiting} samples of {seen} are for this part, but the model takes {size} at a time; "
                "give more, or export it with a dynamic batch"
            )
        if not seen:
            raise InputError(f"{self.name}: no samples in it; give at least one")

    def first(self, size: int = 1) -> Feeds:
        """The first ``size`` samples."""
        for feeds, _ in self.batches(size):
            return feeds
        raise InputError(
            f"{self.name}: too few samples to keep some for scoring; give at least {HELD_OUT_EVERY}"
        )

    def has_labels(self) -> bool:
        """Whether the data comes with integer classes."""
        return next(iter(self.batches(1)))[1] is not None

    def _check(self, feeds: Feeds, labels: np.ndarray | None, seen: int) -> int:
        expected = ", ".join(map(str, self.inputs))
        names = {info.name for info in self.inputs}
        if set(feeds) != names:
            raise InputError(
                f"{self.name}: has arrays {sorted(feeds)}, but the model's inputs are {expected}"
            )
        count = max((len(array) for array in feeds.values() if array.ndim), default=0)
        for info in self.inputs:
            array = feeds[info.name]
            if (
                not array.ndim
                or array.ndim != len(info.shape)
                or any(
                    isinstance(want, int) and got != want
                    for got, want in zip(array.shape[1:], info.shape[1:], strict=True)
                )
            ):
                raise InputError(
                    f"{self.name}: array {info.name!r} has shape {list(array.shape)}, but the model's inputs are "
                    f"{expected} (first axis: samples)"
                )
            if len(array) != count:
                raise InputError(
                    f"{self.name}: {info.name!r} has {len(array)} samples and another input {count}"
                )
            feeds[info.name] = array = self._convert(array, info, expected)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = np.flatnonzero(~np.isfinite(array).reshape(count, -1).all(axis=1))[0]
                raise InputError(
                    f"{self.name}: sample {seen + bad} has NaN or Inf in {info.name!r}; take it out"
                )
        if labels is not None and len(labels) != count:
            raise InputError(f"{self.name}: {len(labels)} labels for {count} samples; give one for each")
        return count

    def _convert(self, array: np.ndarray, info: TensorInfo, expected: str) -> np.ndarray:
        if array.dtype == info.dtype:
            return array
        # Pixels as integers fit a float input without a word, and are nearly always on another scale.
        same = np.can_cast(array.dtype, info.dtype, "same_kind")
        if not same or (info.dtype.startswith("float") and array.dtype.kind != "f"):
            raise InputError(
                f"{self.name}: array {info.name!r} is {array.dtype}, but the model's inputs are {expected}; "
                "prepare the data as the model was trained with it"
            )
        with np.errstate(over="ignore"):
            converted = array.astype(info.dtype)
        if info.dtype.startswith("int") and not np.array_equal(converted, array):
            raise InputError(f"{self.name}: array {info.name!r} has values that do not fit {info.dtype}")
        return converted


def open_samples(data: Any, inputs: tuple[TensorInfo, ...], name: str = "data") -> Samples:
    """A stream from whatever the user has.

    Args:
        data: path of an ``.npz``; an array or tensor; a mapping or sequence of arrays; or an iterable of batches
            that can be run through again, such as a DataLoader (a batch: array, mapping, or tuple in the order of
            the inputs, with labels last where there is one item more).
        inputs: the model's inputs.
        name: what to call it in messages, where it is not a file.

    Raises:
        InputError: a missing or unreadable file, or something that is none of these; a model with a scalar input.
    """
    _refuse_scalars(inputs)
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; data is an .npz whose arrays are named like the model's inputs"
            )
        return Samples(str(path), inputs, lambda: _npz(path, inputs))
    if isinstance(data, Mapping):
        arrays = {key: _array(value) for key, value in data.items()}
        labels = arrays.pop(LABELS, None)
        return Samples(name, inputs, lambda: iter([(dict(arrays), labels)]))
    if _is_array(data):
        return Samples(name, inputs, lambda: iter([_named((data,), inputs)]))
    if isinstance(data, Sequence) and data and all(map(_is_array, data)) and _whole_arrays(data, inputs):
        return Samples(name, inputs, lambda: iter([_named(tuple(data), inputs)]))
    if isinstance(data, Iterator):
        raise InputError(
            f"{name}: an iterator can be run through only once; give a list, a DataLoader or an .npz"
        )
    if isinstance(data, Iterable):
        return Samples(name, inputs, lambda: (_named(batch, inputs) for batch in data))
    raise InputError(
        f"{name}: got {type(data).__name__}; allowed are an .npz path, arrays, tensors, or an iterable of batches"
    )


def _refuse_scalars(inputs: tuple[TensorInfo, ...]) -> None:
    scalars = [str(info) for info in inputs if not info.shape]
    if scalars:
        raise InputError(
            f"the model's input {', '.join(scalars)} is a scalar, which no sample can have one of; "
            "make it a constant in the model, and export it again"
        )


def peek(data: Any, unlabelled: Sequence[str], name: str = "data") -> Feeds:
    """The first batch as it comes, for a model of whose inputs only names are known yet.

    Args:
        data: as :func:`open_samples` takes it.
        unlabelled: the inputs that arrays without names are for.
        name: what to call it in messages, where it is not a file.

    Raises:
        InputError: as :func:`open_samples`; or there is no batch.
    """
    inputs = tuple(TensorInfo(one, "tensor", ("...",)) for one in unlabelled)
    for feeds, _ in open_samples(data, inputs, name).open():
        return feeds
    raise InputError(f"{name}: no samples in it; give at least one")


def synthetic(info: ModelInfo, seed: int, count: int = 16) -> Samples:
    """Random samples for a model that came without data: normal floats, integers that its embeddings have rows for.

    Raises:
        InputError: an input is a scalar.
    """
    _refuse_scalars(info.inputs)
    rng = np.random.default_rng(seed)
    feeds = {}
    for one in info.inputs:
        first = count if isinstance(one.shape[0], str) else one.shape[0]
        shape = [first, *(dim if isinstance(dim, int) else UNKNOWN_DIM for dim in one.shape[1:])]
        if one.dtype.startswith("float"):
            feeds[one.name] = rng.standard_normal(shape).astype(one.dtype)
        else:
            tables = [
                a.weights[0].shape[0] for a in info.layers if a.kind == "embedding" and one.name in a.inputs
            ]
            feeds[one.name] = rng.integers(0, min(tables, default=2), shape).astype(one.dtype)
    return Samples("random inputs", info.inputs, lambda: iter([(dict(feeds), None)]))


def _whole_arrays(data: Sequence[Any], inputs: tuple[TensorInfo, ...]) -> bool:
    """A sequence of arrays is one batch with an array per input, not a batch per item, where the numbers agree."""
    return len(inputs) > 1 and len(data) in (len(inputs), len(inputs) + 1)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and hasattr(value, "dtype")


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _named(batch: Any, inputs: tuple[TensorInfo, ...]) -> tuple[Feeds, np.ndarray | None]:
    if isinstance(batch, Mapping):
        arrays = {key: _array(value) for key, value in batch.items()}
        labels = arrays.pop(LABELS, None)
        return arrays, labels
    items = (batch,) if _is_array(batch) else tuple(batch)
    if len(items) not in (len(inputs), len(inputs) + 1):
        raise InputError(
            f"data: a batch of {len(items)} items, but the model has {len(inputs)} inputs: "
            f"{', '.join(map(str, inputs))} (one item more is taken as labels)"
        )
    feeds = {info.name: _array(item) for info, item in zip(inputs, items, strict=False)}
    return feeds, _array(items[-1]) if len(items) > len(inputs) else None


def _join(parts: list[tuple[Feeds, np.ndarray | None]]) -> tuple[Feeds, np.ndarray | None]:
    if len(parts) == 1:
        return parts[0]
    feeds = {key: np.concatenate([part[0][key] for part in parts]) for key in parts[0][0]}
    labels = [part[1] for part in parts]
    return feeds, None if labels[0] is None else np.concatenate([one for one in labels if one is not None])


def _cut(
    batch: tuple[Feeds, np.ndarray | None], size: int
) -> tuple[tuple[Feeds, np.ndarray | None], tuple[Feeds, np.ndarray | None]]:
    feeds, labels = batch
    head = {key: array[:size] for key, array in feeds.items()}
    tail = {key: array[size:] for key, array in feeds.items()}
    return (head, None if labels is None else labels[:size]), (
        tail,
        None if labels is None else labels[size:],
    )


ROW_BYTES = 1 << 22  # about this much of every array is read at a time

UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What ``zipfile`` and numpy raise for a damaged, encrypted or foreign archive."""


def _npz(path: Path, inputs: tuple[TensorInfo, ...]) -> Iterator[tuple[Feeds, np.ndarray | None]]:
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise InputError(f"{path}: not an .npz file ({error}); write it with numpy.savez") from error
    with archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        arrays = [name for name in members if name != LABELS]
        names = {name: name for name in arrays}
        if len(arrays) == len(inputs) == 1:
            names = {arrays[0]: inputs[0].name}
        streams = {}
        for name, member in members.items():
            streams[name] = _NpyStream(path, name, archive, member)
        lengths = {name: stream.length for name, stream in streams.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"{path}: arrays differ in their number of samples: {lengths}")
        if not arrays or not max(lengths.values()):
            raise InputError(f"{path}: no samples in it; give at least one")
        rows = max(1, ROW_BYTES // max(stream.row_bytes for stream in streams.values()))
        for start in range(0, max(lengths.values()), rows):
            count = min(rows, max(lengths.values()) - start)
            block = {name: stream.read(count) for name, stream in streams.items()}
            labels = block.pop(LABELS, None)
            yield {names[name]: array for name, array in block.items()}, labels


class _NpyStream:
    """Reads one array of an ``.npz`` a few rows at a time."""

    def __init__(self, path: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self.path, self.name = path, name
        try:
            self.file = file = archive.open(member)
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, self.dtype = read(file)
        except UNREADABLE as error:
            raise InputError(f"{path}: array {name!r} cannot be read ({error})") from error
        if self.dtype.hasobject or fortran or not shape:
            what = (
                "Python objects" if self.dtype.hasobject else "column order" if fortran else "no sample axis"
            )
            raise InputError(
                f"{path}: array {name!r} has {what}; save a plain row-major array, samples first"
            )
        self.length, self.row_shape = shape[0], shape[1:]
        self.row_bytes = max(1, int(np.prod(self.row_shape)) * self.dtype.itemsize)

    def read(self, rows: int) -> np.ndarray:
        wanted = rows * int(np.prod(self.row_shape)) * self.dtype.itemsize
        try:
            data = self.file.read(wanted)
        except UNREADABLE as error:
            raise InputError(f"{self.path}: array {self.name!r} cannot be read ({error})") from error
        if len(data) < wanted:
            raise InputError(f"{self.path}: array {self.name!r} is cut short; write the file again")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.row_shape)
