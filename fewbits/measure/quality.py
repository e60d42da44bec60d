"""How good a candidate's outputs are: against labels where there are any, and always against the original's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fewbits.errors import InputError
from fewbits.measure.metrics import Batch, Scorer
from fewbits.measure.outputs import cosines, decibel, difference, energy, largest
from fewbits.samples import Samples


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
    """The score (NaN or infinite where it is not defined), agreement, and how many samples were seen."""

    score: float
    agreement: Agreement
    samples: int


class Reference:
    """The original's outputs, kept in files so that memory does not grow with the number of samples."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches = 0
        self.outputs: tuple[str, ...] = ()

    def record(self, session: Runs, samples: Samples, batch: int) -> None:
        """Run the original over the samples."""
        for number, (feeds, _) in enumerate(samples.batches(batch)):
            outputs = session.run(feeds)
            self.outputs = samples.results(outputs)
            np.savez(self.folder / f"{number}.npz", *(outputs[name] for name in self.outputs))
            self.batches = number + 1
        if not self.batches:
            raise InputError(f"{samples.name}: no samples to score with; give more, or --eval FILE")

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for number in range(self.batches):
            with np.load(self.folder / f"{number}.npz") as arrays:
                yield [arrays[name] for name in arrays.files]

    def looks_like_classes(self) -> bool:
        """Whether the first output has several columns, and rows that differ in length.

        Rows of one length (an embedding) and outputs of other than two axes are not classes.
        """
        first = next(iter(self))[0]
        classes = first.ndim == 2 and first.shape[1] > 1 and first.dtype.kind == "f"
        if classes and len(first) > 1:
            norms = np.linalg.norm(first.astype(np.float64), axis=1)
            return not np.allclose(norms, norms[0], rtol=1e-3)
        return classes


def score(session: Runs, samples: Samples, batch: int, reference: Reference, scorer: Scorer) -> Quality:
    """Run a candidate over the samples and compare what are its results, and not state.

    Raises:
        InputError: outputs or labels that the metric is not for, or a function of the user's own fails.
    """
    count = same = 0
    parts: list[np.ndarray] = []
    signal = noise = 0.0
    for (feeds, labels), expected in zip(samples.batches(batch), reference, strict=True):
        given = session.run(feeds)
        outputs = [given[name] for name in samples.results(given)]
        size = samples.size(feeds)
        count += size
        signal, noise = signal + energy(expected), noise + difference(expected, outputs)
        parts.append(cosines(expected, outputs, size))
        if outputs[0].ndim == 2:
            same += int((largest(outputs[0]) == largest(expected[0])).sum())
        scorer.see(Batch(size, outputs, expected, labels))
    cosine = np.concatenate(parts)
    top1 = same / count if expected[0].ndim == 2 and expected[0].shape[1] > 1 else None
    agreement = Agreement(top1, float(cosine.min()), float(cosine.mean()), decibel(signal, noise))
    return Quality(scorer.score(), agreement, count)
