"""The user's data as a stream of feeds, checked against the model's inputs; never read whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewbits import npz
from fewbits.engines.engine import Session
from fewbits.errors import InputError
from fewbits.feeding import PLAIN, Feeding, Feeds, Intake, intake
from fewbits.planning.model_info import Dim, ModelInfo, TensorInfo
from fewbits.steps import START, Stepping

LABELS = "labels"
SEQUENCE = (
    "sequence"  # the array that tells which sequence each step belongs to, where outputs feed the next step
)
UNKNOWN_DIM = 16  # the size given to a dynamic axis that no data tells
STEPS = 8  # of a sequence stand for one sample where a few samples are enough

HELD_OUT_EVERY = 4  # without data of its own for scoring, every fourth sample is kept from calibration


@dataclass(frozen=True)
class _Block:
    """Samples as they are read: ``rows`` has them along the first axis, ``whole`` what serves all of them."""

    rows: Feeds
    whole: Feeds
    count: int

    def same_whole(self, other: _Block) -> bool:
        return all(np.array_equal(array, other.whole[name]) for name, array in self.whole.items())

    def cut(self, size: int) -> tuple[_Block, _Block]:
        """The first ``size`` samples, and the others."""
        head = {key: array[:size] for key, array in self.rows.items()}
        tail = {key: array[size:] for key, array in self.rows.items()}
        return _Block(head, self.whole, size), _Block(tail, self.whole, self.count - size)


def _join(parts: list[_Block]) -> _Block:
    if len(parts) == 1:
        return parts[0]
    rows = {key: np.concatenate([part.rows[key] for part in parts]) for key in parts[0].rows}
    return _Block(rows, parts[0].whole, sum(part.count for part in parts))


@dataclass(frozen=True)
class Samples:
    """A stream of samples that can be run through any number of times.

    Where outputs of the model feed its next step, a sample is a step. Steps follow each other in the order of the data;
    a new sequence starts where the number in the array ``sequence`` changes, and at the beginning.

    Attributes:
        name: what the user calls it (a file, or ``data``), for messages.
        intake: how the model's inputs are fed.
        open: starts a new pass over batches of any size, as (arrays, labels or None).
        keep: which sample numbers belong to this stream; None for all.
        part: what of the data this is, in words.
    """

    name: str
    intake: Intake
    open: Callable[[], Iterator[tuple[Feeds, np.ndarray | None]]]
    keep: Callable[[np.ndarray], np.ndarray] | None = None
    part: str = "all"

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The model's inputs, which every feed fits."""
        return self.intake.inputs

    @cached_property
    def batch(self) -> int | None:
        """The number of samples that are run at a time, where the model or the data fixes it.

        Any number of steps is, one after the other.
        """
        if self.intake.state:
            return None
        return self.intake.fixed_batch or self._batch_of_data()

    def _batch_of_data(self) -> int | None:
        """A scalar for each sample is fed to one at a time; what is given whole may be for so many samples."""
        if all(port.per_sample for port in self.intake.ports):
            return None
        block = next(self._blocks(), None)
        if block is None:
            return None
        if any(port.axis is None and port.info.name in block.rows for port in self.intake.ports):
            return 1
        batched = (port for port in self.intake.ports if port.per_sample is False and port.axis is not None)
        return next(
            (block.whole[port.info.name].shape[port.axis] for port in batched if port.axis is not None), None
        )

    def split(self) -> tuple[Samples, Samples]:
        """One stream to calibrate with and one to score with, without a sample in common.

        Every fourth sample is scored; of sequences every fourth one, or where they are fewer, the last quarter of all
        steps.
        """
        if not self.intake.state:
            return self._split(
                lambda numbers: numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1, "every fourth sample"
            )
        starts: list[int] = []
        steps = 0
        for block in self._blocks():
            starts += (steps + np.flatnonzero(block.rows[START])).tolist()
            steps += block.count
        if len(starts) < HELD_OUT_EVERY:
            edge = steps - steps // HELD_OUT_EVERY
            return self._split(lambda numbers: numbers >= edge, "the last quarter of the steps")

        def held(numbers: np.ndarray) -> np.ndarray:
            order = np.searchsorted(starts, numbers, side="right") - 1
            return order % HELD_OUT_EVERY == HELD_OUT_EVERY - 1

        return self._split(held, "every fourth sequence")

    def _split(self, held: Callable[[np.ndarray], np.ndarray], part: str) -> tuple[Samples, Samples]:
        return replace(self, keep=lambda numbers: ~held(numbers), part="the rest"), replace(
            self, keep=held, part=part
        )

    def session(self, session: Session) -> Session:
        """What runs these samples: ``session``, or where its outputs feed the next step, one that does that."""
        return Stepping(session, self.intake) if self.intake.state else session

    def batches(self, size: int) -> Iterator[tuple[Feeds, np.ndarray | None]]:
        """Feeds of exactly ``size`` samples for :meth:`session`, with their labels where the data has them.

        The last may have fewer; it is left out where ``size`` is the number that the model always takes. There are
        fewer too where the data goes on with something else given whole.

        Raises:
            InputError: names, dtypes or shapes are not the model's; NaN or Inf in a sample (it is named); no data.
        """
        complete = size == self.intake.fixed_batch
        given = False
        pending: list[_Block] = []
        waiting, kept = 0, 0
        for block in self._blocks():
            if pending and not pending[-1].same_whole(block):
                if not complete:
                    yield self._fed(_join(pending))
                pending, waiting = [], 0
            pending.append(block)
            waiting, kept = waiting + block.count, kept + block.count
            while waiting >= size:
                batch, rest = _join(pending).cut(size)
                yield self._fed(batch)
                given = True
                pending, waiting = ([rest], waiting - size) if waiting > size else ([], 0)
        if waiting and not complete:
            yield self._fed(_join(pending))
        if waiting and complete and not given:
            raise InputError(
                f"{self.name}: {kept} samples are for this part, but the model takes {size} at a time; "
                "give more, or export it with a dynamic batch"
            )

    def _fed(self, block: _Block) -> tuple[Feeds, np.ndarray | None]:
        rows = dict(block.rows)
        labels = rows.pop(LABELS, None)
        if not self.intake.state:
            return self.intake.feeds(rows, block.whole), labels
        spread = {
            name: np.broadcast_to(array, (block.count, *array.shape)) for name, array in block.whole.items()
        }
        return {**spread, **rows}, labels

    def _blocks(self) -> Iterator[_Block]:
        """What is read, checked, and cut to what belongs to this stream."""
        seen = 0
        before: tuple[int, Any] | None = None  # the last step that was kept, and its sequence
        for arrays, labels in self.open():
            block = self._checked(arrays, labels, seen)
            numbers = np.arange(seen, seen + block.count)
            seen += block.count
            if self.keep is not None:
                chosen = self.keep(numbers)
                numbers = numbers[chosen]
                rows = {key: array[chosen] for key, array in block.rows.items()}
                block = _Block(rows, block.whole, len(numbers))
            if not block.count:
                continue
            if self.intake.state:
                ids = block.rows.pop(SEQUENCE, np.zeros(block.count))
                starts = np.ones(block.count, bool)
                starts[1:] = (ids[1:] != ids[:-1]) | (np.diff(numbers) != 1)
                starts[0] = before is None or numbers[0] != before[0] + 1 or bool(ids[0] != before[1])
                before = int(numbers[-1]), ids[-1]
                block.rows[START] = starts
            yield block
        if not seen:
            raise InputError(f"{self.name}: no samples in it; give at least one")

    def size(self, feeds: Feeds) -> int:
        """The number of samples in feeds."""
        return len(feeds[START]) if self.intake.state else self.intake.count(feeds)

    def first(self, size: int = 1) -> Feeds:
        """The first ``size`` samples, for :meth:`session`."""
        for feeds, _ in self.batches(size):
            return feeds
        raise InputError(
            f"{self.name}: too few samples to keep some for scoring; give at least {HELD_OUT_EVERY}"
        )

    def some(self, count: int, size: int) -> list[Feeds]:
        """About ``count`` samples for :meth:`session`, ``size`` at a time or as many as always are; or some steps."""
        if self.intake.state:
            return [self.first(count * STEPS)]
        found: list[Feeds] = []
        for feeds, _ in self.batches(self.batch or size):
            found.append(feeds)
            if sum(map(self.size, found)) >= count:
                break
        return found or [self.first(self.batch or size)]

    def one_run(self) -> Feeds:
        """What the model itself takes in one run: one sample or as many as it always takes; or the first step."""
        feeds = self.first(self.batch or 1)
        return next(Stepping.steps(self.intake, feeds)) if self.intake.state else feeds

    def results(self, names: Iterable[str]) -> tuple[str, ...]:
        """The outputs that are results, and not only what feeds the next step; all where there are no others."""
        names = tuple(names)
        return tuple(name for name in names if name not in self.intake.state) or names

    def filled(self, size: int) -> Feeds:
        """The first ``size`` samples for one run; where there are fewer, over and over again."""
        pending: list[_Block] = []
        for block in self._blocks():
            if pending and not pending[-1].same_whole(block):
                break
            pending.append(block)
            if sum(one.count for one in pending) >= size:
                break
        found = _join(pending)
        times = -(-size // found.count)
        rows = {name: np.concatenate([array] * times)[:size] for name, array in found.rows.items()}
        return self._fed(_Block(rows, found.whole, size))[0]

    def has_labels(self) -> bool:
        """Whether the data comes with integer classes."""
        return next(iter(self.batches(1)))[1] is not None

    def _checked(self, given: Feeds, labels: np.ndarray | None, seen: int) -> _Block:
        expected = ", ".join(map(str, self.inputs))
        arrays = dict(given)
        sequence = arrays.pop(SEQUENCE, None) if self._sequences() else None
        asked = {info.name for info in self.intake.asked}
        if not asked <= set(arrays) <= {info.name for info in self.inputs}:
            fed = (
                f" ({', '.join(self.intake.state.values())}: from the step before)"
                if self.intake.state
                else ""
            )
            raise InputError(
                f"{self.name}: has arrays {sorted(arrays)}, but the model's inputs are {expected}{fed}"
            )
        rows: Feeds = {}
        whole: Feeds = {}
        for port in self.intake.ports:
            name = port.info.name
            if name not in arrays:
                continue
            array = arrays[name]
            if (wrong := port.check(array.shape)) is not None:
                raise InputError(
                    f"{self.name}: array {name!r} has shape {list(array.shape)}, but the model's inputs are "
                    f"{expected} ({wrong})"
                )
            (rows if port.has_rows(array.shape) else whole)[name] = self._convert(array, port.info, expected)
        count = max(map(len, rows.values()), default=1)
        for name, array in rows.items():
            if len(array) != count:
                raise InputError(f"{self.name}: {name!r} has {len(array)} samples and another input {count}")
        self._check_finite(rows, whole, seen)
        for what, more in ((LABELS, labels), (SEQUENCE, sequence)):
            if more is not None:
                if more.ndim == 0 or len(more) != count:
                    number = len(more) if more.ndim else "one"
                    raise InputError(f"{self.name}: {number} {what} for {count} samples; give one for each")
                rows[what] = more
        return _Block(rows, whole, count)

    def _sequences(self) -> bool:
        return bool(self.intake.state) and self.intake.port(SEQUENCE) is None

    def _check_finite(self, rows: Feeds, whole: Feeds, seen: int) -> None:
        for name, array in {**rows, **whole}.items():
            if array.dtype.kind != "f" or np.isfinite(array).all():
                continue
            if name in whole:
                raise InputError(f"{self.name}: {name!r} has NaN or Inf")
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0]
            raise InputError(f"{self.name}: sample {seen + bad} has NaN or Inf in {name!r}; take it out")

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


def open_samples(
    data: Any,
    inputs: tuple[TensorInfo, ...],
    name: str = "data",
    feeding: Feeding = PLAIN,
) -> Samples:
    """A stream from whatever the user has.

    Samples lie along the first axis of every array. What is the same for all samples is given whole: a scalar, or an
    input whose first axis is not its batch.

    Args:
        data: path of an ``.npz``; an array or tensor; a mapping or sequence of arrays; or an iterable of batches
            that can be run through again, such as a DataLoader (a batch: array, mapping, or tuple or list in the order
            of the inputs, with labels last where there is one item more); or a function that gives batches anew each
            time it is called, such as TensorFlow's representative datasets.
        inputs: the model's inputs.
        name: what to call it in messages, where it is not a file.
        feeding: which axis of which input is its batch, and which inputs the step before feeds.

    Raises:
        InputError: a missing or unreadable file, or something that is none of these; a state that takes several samples
            at a time.
    """
    into = intake(inputs, feeding)
    if into.state and into.fixed_batch not in (None, 1):
        raise InputError(
            f"state: the model takes {into.fixed_batch} samples at a time ({', '.join(map(str, inputs))}), but a "
            "step is one; export it with a batch of 1, or of any size"
        )
    asked = into.asked
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; data is an .npz whose arrays are named like the model's inputs"
            )
        return Samples(str(path), into, lambda: _npz(path, into))
    if isinstance(data, npz.Folder):
        return Samples(str(data), into, lambda: _npz(data, into))
    if isinstance(data, Mapping):
        arrays = {key: _array(value) for key, value in data.items()}
        labels = arrays.pop(LABELS, None)
        return Samples(name, into, lambda: iter([(dict(arrays), labels)]))
    if _is_array(data):
        return Samples(name, into, lambda: iter([_named((data,), asked)]))
    if isinstance(data, Sequence) and data and all(map(_is_array, data)) and _whole_arrays(data, asked):
        return Samples(name, into, lambda: iter([_named(tuple(data), asked)]))
    if isinstance(data, Iterator):
        raise InputError(
            f"{name}: an iterator can be run through only once; give the function that makes it, a list, a DataLoader "
            "or an .npz"
        )
    if callable(data) and not isinstance(data, Iterable):
        return Samples(name, into, lambda: (_named(batch, asked) for batch in data()))
    if isinstance(data, Iterable):
        return Samples(name, into, lambda: (_named(batch, asked) for batch in data))
    raise InputError(
        f"{name}: got {type(data).__name__}; allowed are an .npz path, arrays, tensors, or an iterable or a generator "
        "function of batches"
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


def synthetic(info: ModelInfo, seed: int, count: int = 16, feeding: Feeding = PLAIN) -> Samples:
    """Random samples for a model that came without data: normal floats, integers that its embeddings have rows for."""
    into = intake(info.inputs, feeding)
    rng = np.random.default_rng(seed)
    feeds = {}
    for port in into.ports:
        if not port.state:
            shape = [1 if i == port.axis else _size(dim) for i, dim in enumerate(port.info.shape)]
            if port.per_sample:
                first = port.info.shape[port.axis or 0]
                shape = [count if isinstance(first, str) else first, *map(_size, port.of_one)]
            feeds[port.info.name] = _random(port.info, shape, info, rng)
        elif any(isinstance(dim, str) and i != port.axis for i, dim in enumerate(port.info.shape)):
            shape = [1 if i == port.axis else _size(dim) for i, dim in enumerate(port.info.shape)]
            feeds[port.info.name] = np.zeros(shape, np.dtype(port.info.dtype))
    return Samples("random inputs", into, lambda: iter([(dict(feeds), None)]))


def random_feeds(info: ModelInfo, seed: int) -> Feeds:
    """Random values as :func:`synthetic` draws them, for inputs whose shapes are all known."""
    rng = np.random.default_rng(seed)
    return {one.name: _random(one, [_size(dim) for dim in one.shape], info, rng) for one in info.inputs}


def _size(dim: Dim) -> int:
    return dim if isinstance(dim, int) else UNKNOWN_DIM


def _random(one: TensorInfo, shape: Sequence[int], info: ModelInfo, rng: np.random.Generator) -> np.ndarray:
    if one.dtype.startswith("float"):
        return np.asarray(rng.standard_normal(shape)).astype(one.dtype)
    tables = [a.weights[0].shape[0] for a in info.layers if a.kind == "embedding" and one.name in a.inputs]
    return np.asarray(rng.integers(0, min(tables, default=2), shape)).astype(one.dtype)


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
    if len(items) == 2 and isinstance(items[0], str):
        raise InputError(
            f"data: a batch for the signature {items[0]!r}, which only .tflite files have; leave the name out: "
            f"{', '.join(map(str, inputs))}"
        )
    if len(items) not in (len(inputs), len(inputs) + 1):
        raise InputError(
            f"data: a batch of {len(items)} items, but the model has {len(inputs)} inputs: "
            f"{', '.join(map(str, inputs))} (one item more is taken as labels)"
        )
    feeds = {info.name: _array(item) for info, item in zip(inputs, items, strict=False)}
    return feeds, _array(items[-1]) if len(items) > len(inputs) else None


def _npz(source: Path | npz.Folder, into: Intake) -> Iterator[tuple[Feeds, np.ndarray | None]]:
    def has_rows(name: str, shape: tuple[int, ...]) -> bool:
        port = into.port(name)
        return port is None or port.has_rows(shape)

    only = into.asked[0].name if len(into.asked) == 1 else None
    apart = (LABELS, SEQUENCE) if into.state else (LABELS,)
    for block in npz.read(source, only, apart, has_rows):
        labels = block.pop(LABELS, None)
        yield block, labels
