"""How good a candidate's outputs are: against labels where there are any, and always against the original's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from fewbits.errors import InputError
from fewbits.samples import Samples

MetricName = Literal["top1", "agreement", "cosine"]


class Runs(Protocol):
    """Anything that maps feeds to outputs, such as a compiled session."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Map every input by name to the outputs by name."""
        ...


@dataclass(frozen=True)
class Agreement:
    """A candidate's outputs against the original's own, over all samples.

    Attributes:
        top1: share of samples whose largest entry of the first output is the same one; None without classes.
        cosine_min: smallest cosine of any sample, all float outputs flattened together.
        cosine_mean: the mean of them.
        sqnr_db: energy of the original's outputs over that of the difference, dB; infinite where equal, and minus
            infinite where a value is NaN, or infinite and not the original's.
    """

    top1: float | None
    cosine_min: float
    cosine_mean: float
    sqnr_db: float


@dataclass(frozen=True)
class Quality:
    """The score by the metric (None where it is the user's own), agreement, and how many samples were seen."""

    score: float | None
    agreement: Agreement
    samples: int


class Reference:
    """The original's outputs, kept in files so that memory does not grow with the number of samples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches = 0

    def record(self, session: Runs, samples: Samples, batch: int) -> None:
        """Run the original over the samples."""
        for number, (feeds, _) in enumerate(samples.batches(batch)):
            outputs = session.run(feeds)
            np.savez(self.folder / f"{number}.npz", *(outputs[name] for name in samples.results(outputs)))
            self.batches = number + 1
        if not self.batches:
            raise InputError(f"{samples.name}: no samples to score with; give more, or --eval FILE")

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for number in range(self.batches):
            with np.load(self.folder / f"{number}.npz") as arrays:
                yield [arrays[name] for name in arrays.files]

    def metric(self, labelled: bool) -> MetricName:
        """Top-1 with labels; without, agreement where the first output looks like classes, else the mean cosine.

        Rows of one length (an embedding) and outputs of other than two axes are not classes.
        """
        first = next(iter(self))[0]
        if labelled:
            return "top1"
        classes = first.ndim == 2 and first.shape[1] > 1 and first.dtype.kind == "f"
        if classes and len(first) > 1:
            norms = np.linalg.norm(first.astype(np.float64), axis=1)
            classes = not np.allclose(norms, norms[0], rtol=1e-3)
        return "agreement" if classes else "cosine"


def score(session: Runs, samples: Samples, batch: int, reference: Reference, metric: MetricName) -> Quality:
    """Run a candidate over the samples and compare what are its results, and not state.

    Raises:
        InputError: labels that are no classes of the first output.
    """
    count = right = same = 0
    cosines: list[np.ndarray] = []
    signal = noise = 0.0
    for (feeds, labels), expected in zip(samples.batches(batch), reference, strict=True):
        given = session.run(feeds)
        outputs = [given[name] for name in samples.results(given)]
        size = samples.size(feeds)
        count += size
        signal, noise = signal + _energy(expected), noise + _difference(expected, outputs)
        cosines.append(_cosines(expected, outputs, size))
        if outputs[0].ndim == 2:
            same += int((_classes(outputs[0]) == _classes(expected[0])).sum())
        if metric == "top1":
            right += _right(samples, outputs[0], labels)
    cosine = np.concatenate(cosines)
    top1 = same / count if expected[0].ndim == 2 and expected[0].shape[1] > 1 else None
    agreement = Agreement(top1, float(cosine.min()), float(cosine.mean()), _decibel(signal, noise))
    points = {"top1": right / count, "agreement": same / count, "cosine": agreement.cosine_mean}
    return Quality(100 * points[metric], agreement, count)


def _right(samples: Samples, output: np.ndarray, labels: np.ndarray | None) -> int:
    if labels is None or output.ndim != 2:
        raise InputError(
            f"{samples.name}: labels need a first output [samples, classes], but it is {output.shape}"
        )
    if labels.ndim != 1:
        raise InputError(
            f"{samples.name}: labels have shape {list(labels.shape)}; give one class for each sample"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= output.shape[1]:
        raise InputError(
            f"{samples.name}: labels from {labels.min()} to {labels.max()} ({labels.dtype}), but the model has "
            f"classes 0 to {output.shape[1] - 1}"
        )
    return int((_classes(output) == labels).sum())


def _classes(output: np.ndarray) -> np.ndarray:
    """The largest entry of every row; none, -1, in a row with NaN."""
    return np.where(np.isnan(output).any(axis=1), -1, output.argmax(axis=1))


def _decibel(signal: float, noise: float) -> float:
    if noise in (0.0, np.inf):
        return float("inf") if noise == 0 else float("-inf")
    return float(10 * np.log10(max(signal, 1e-30) / noise))


def _floats(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    chosen = [array for array in arrays if array.dtype.kind == "f"] or list(arrays)
    return [array.astype(np.float64) for array in chosen]


def _energy(arrays: Sequence[np.ndarray]) -> float:
    """Of what is finite: scores of what is masked may be minus infinity."""
    return sum(float(np.square(array[np.isfinite(array)]).sum()) for array in _floats(arrays))


def _difference(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """Energy of the difference; infinite where one of two values that are not equal is NaN or infinite."""
    noise = 0.0
    for a, b in zip(_floats(expected), _floats(got), strict=True):
        differ = a != b
        if not (np.isfinite(a[differ]).all() and np.isfinite(b[differ]).all()):
            return float("inf")
        noise += float(np.square(b[differ] - a[differ]).sum())
    return noise


def _cosines(expected: Sequence[np.ndarray], got: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Cosine per sample; one number for all where an output does not have the samples as its first axis."""
    a, b = _floats(expected), _floats(got)
    rows = size if all(array.ndim and len(array) == size and array.size > size for array in a) else 1
    left = np.concatenate([array.reshape(rows, -1) for array in a], axis=1)
    right = np.concatenate([array.reshape(rows, -1) for array in b], axis=1)
    equal = (left == right).all(axis=1)
    with np.errstate(invalid="ignore"):  # NaN and infinite values give NaN
        length = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosine = np.where(equal, 1.0, (left * right).sum(axis=1) / np.where(length > 0, length, 1.0))
    return np.nan_to_num(cosine, nan=-1.0)
