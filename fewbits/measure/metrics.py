"""What quality means: the metrics by name, and how each score adds up over batches."""

from __future__ import annotations

import contextlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fewbits.errors import InputError
from fewbits.measure.outputs import cosines, decibel, difference, energy, floats, largest
from fewbits.named import describe

Against = Literal["labels", "original"]
"""What outputs are compared with: the data's labels, or what the original gives for the same samples."""

SAME_DB = 100.0  # of peak signal-to-noise ratio stand for outputs that are equal, which would be infinite


@dataclass(frozen=True)
class Batch:
    """What a model gives for some samples, beside what the original gives and the labels, where there are some."""

    size: int
    outputs: Sequence[np.ndarray]
    expected: Sequence[np.ndarray]
    labels: np.ndarray | None

    @property
    def some_labels(self) -> np.ndarray:
        """The labels, for what is only used where there are some."""
        assert self.labels is not None
        return self.labels


@dataclass(frozen=True)
class Subject:
    """What is scored, as a scorer needs to know it.

    Attributes:
        metric: its name.
        data: what the user calls the samples.
        against: what outputs are compared with.
        outputs: the names of the model's outputs.
        place: the place of the one that is scored; None for all float outputs together.
    """

    metric: str
    data: str
    against: Against
    outputs: tuple[str, ...]
    place: int | None

    @property
    def scored(self) -> str:
        """The scored output in words."""
        return "the output" if len(self.outputs) == 1 else f"the output {self.outputs[self.place or 0]!r}"

    def refused(self, why: str) -> InputError:
        """An error that names the data and the metric."""
        hint = "" if len(self.outputs) == 1 else f" (outputs: {', '.join(self.outputs)}; see --metric-output)"
        return InputError(f"{self.data}: metric {self.metric!r} {why}{hint}")


class Scorer(ABC):
    """Adds up, batch after batch, what a score is made of."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @abstractmethod
    def see(self, batch: Batch) -> None:
        """Take in a batch.

        Raises:
            InputError: outputs or labels that this metric is not for.
        """

    @abstractmethod
    def score(self) -> float:
        """Of all batches so far; NaN or infinite where it is not defined."""

    def loss(self, share: float, score: float) -> float:
        """What losing this share comes to, in the metric's unit, for the one that was seen and got this score."""
        return share * abs(score)

    def output(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The scored one of the outputs."""
        return arrays[self.subject.place or 0]

    def pair(self, batch: Batch) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What is to be compared, value by value: what was wanted, and what the model gives; float64."""
        if self.subject.against == "labels":
            output = self.output(batch.outputs)
            return [self._targets(output, batch.some_labels).reshape(output.shape)], [
                output.astype(np.float64)
            ]
        if self.subject.place is None:
            return floats(batch.expected), floats(batch.outputs)
        return floats([self.output(batch.expected)]), floats([self.output(batch.outputs)])

    def _targets(self, output: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if labels.dtype.kind not in "iufb" or _without_ones(labels.shape) != _without_ones(output.shape):
            raise self.subject.refused(
                f"needs a number as label for every value of {self.subject.scored}, {list(output.shape)}, but labels "
                f"are {labels.dtype}{list(labels.shape)}; without labels the original's outputs take their place"
            )
        if not np.isfinite(labels).all():
            raise self.subject.refused("cannot be computed: labels hold NaN or Inf; take those samples out")
        return labels.astype(np.float64)


class Hits(Scorer):
    """Share of samples whose label is among the ``most`` largest entries of the output, in percent."""

    def __init__(self, subject: Subject, most: int) -> None:
        super().__init__(subject)
        self.most = most
        self.hits = self.count = 0

    def see(self, batch: Batch) -> None:
        """See `Scorer.see`."""
        output = _classes(self.subject, self.output(batch.outputs))
        labels = self._checked(batch.some_labels, output)
        right = output[np.arange(len(output)), labels]
        places = np.arange(output.shape[1])
        # Of equal entries the first is the largest, as for argmax.
        before = (output > right[:, None]) | ((output == right[:, None]) & (places < labels[:, None]))
        self.hits += int(((before.sum(axis=1) < self.most) & ~np.isnan(output).any(axis=1)).sum())
        self.count += len(output)

    def score(self) -> float:
        """See `Scorer.score`."""
        return 100 * self.hits / self.count

    def _checked(self, labels: np.ndarray, output: np.ndarray) -> np.ndarray:
        classes = output.shape[1]
        if labels.ndim != 1:
            raise self.subject.refused(
                f"needs one class as label for each sample, but labels have shape {list(labels.shape)}"
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
            floating = "; float targets are for spearman, mse, psnr and cosine"
            raise self.subject.refused(
                f"needs classes 0 to {classes - 1} as labels, but they go from {labels.min()} to {labels.max()} "
                f"({labels.dtype}){floating if labels.dtype.kind == 'f' else ''}"
            )
        if classes <= self.most > 1:
            raise self.subject.refused(f"is always 100 % for {classes} classes; take top1")
        return labels


class Agreement(Scorer):
    """Share of samples whose largest entry is the original's, in percent."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.same = self.count = 0

    def see(self, batch: Batch) -> None:
        """See `Scorer.see`."""
        output = _classes(self.subject, self.output(batch.outputs))
        self.same += int((largest(output) == largest(self.output(batch.expected))).sum())
        self.count += len(output)

    def score(self) -> float:
        """See `Scorer.score`."""
        return 100 * self.same / self.count


class Cosine(Scorer):
    """Mean cosine of each sample's outputs with what is wanted, times 100."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.parts: list[np.ndarray] = []

    def see(self, batch: Batch) -> None:
        """See `Scorer.see`."""
        wanted, got = self.pair(batch)
        if self.subject.against == "labels" and got[0].size == batch.size:
            raise self.subject.refused(f"needs several values per sample, but {self.subject.scored} has one")
        self.parts.append(cosines(wanted, got, batch.size))

    def score(self) -> float:
        """See `Scorer.score`."""
        return 100 * float(np.concatenate(self.parts).mean())


class Spearman(Scorer):
    """Spearman's rank correlation of one output per sample with the labels; equal values share their mean rank."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.got: list[np.ndarray] = []
        self.wanted: list[np.ndarray] = []

    def see(self, batch: Batch) -> None:
        """See `Scorer.see`."""
        output = self.output(batch.outputs)
        if not output.ndim or output.size != len(output):
            raise self.subject.refused(
                f"needs one value per sample, but {self.subject.scored} is {list(output.shape)}"
            )
        (wanted,), (got,) = self.pair(batch)
        self.got.append(got.reshape(-1))
        self.wanted.append(wanted.reshape(-1))

    def score(self) -> float:
        """See `Scorer.score`."""
        got, wanted = np.concatenate(self.got), np.concatenate(self.wanted)
        if not np.isfinite(got).all():
            return math.nan
        a, b = _ranks(got), _ranks(wanted)
        a, b = a - a.mean(), b - b.mean()
        length = math.sqrt(float(np.square(a).sum()) * float(np.square(b).sum()))
        return float((a * b).sum()) / length if length else math.nan


class Errors(Scorer):
    """Squared differences, and what they are seen against."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.noise = self.signal = 0.0
        self.count = 0
        self.low, self.high = math.inf, -math.inf

    def see(self, batch: Batch) -> None:
        """See `Scorer.see`."""
        wanted, got = self.pair(batch)
        self.noise += difference(wanted, got)
        self.signal += energy(wanted)
        for array in wanted:
            self.count += array.size
            finite = array[np.isfinite(array)]
            self.low = min(self.low, float(finite.min(initial=math.inf)))
            self.high = max(self.high, float(finite.max(initial=-math.inf)))


class MeanSquaredError(Errors):
    """Mean squared difference.

    Against the original, which has none to itself, a share to lose is one of the mean square of its outputs.
    """

    def score(self) -> float:
        """See `Scorer.score`."""
        return self.noise / self.count

    def loss(self, share: float, score: float) -> float:
        """See `Scorer.loss`."""
        return share * (score if self.subject.against == "labels" else self.signal / self.count)


class PeakRatio(Errors):
    """Peak signal-to-noise ratio in dB: the squared range of what is wanted over the mean squared difference.

    The range is taken over all samples, the difference too. Against the original a share to lose is one of the energy
    of its outputs, as for the mean squared error.
    """

    def score(self) -> float:
        """See `Scorer.score`."""
        if not self.high > self.low:
            raise self.subject.refused(
                f"needs values that differ, but all that outputs are compared with are {self.low:g}"
            )
        return self._of(self.noise)

    def loss(self, share: float, score: float) -> float:
        """See `Scorer.loss`."""
        if self.subject.against == "labels":
            return super().loss(share, score)
        return score - self._of(share * self.signal)

    def _of(self, noise: float) -> float:
        return min(SAME_DB, decibel(self.count * (self.high - self.low) ** 2, noise))


class Function(Scorer):
    """A function of the user's own: of all outputs (an array, or a tuple of them) and labels (or None)."""

    def __init__(self, subject: Subject, function: Callable[..., Any]) -> None:
        super().__init__(subject)
        self.function = function
        self.outputs: list[Sequence[np.ndarray]] = []
        self.labels: list[np.ndarray] = []

    def see(self, batch: Batch) -> None:
        """See `Scorer.see`."""
        kept = batch.outputs if self.subject.place is None else [self.output(batch.outputs)]
        if any(not array.ndim for array in kept):
            raise self.subject.refused("takes the outputs of all samples, but one of them is a scalar")
        self.outputs.append(kept)
        if batch.labels is not None:
            self.labels.append(batch.labels)

    def score(self) -> float:
        """See `Scorer.score`."""
        outputs = tuple(np.concatenate(parts) for parts in zip(*self.outputs, strict=True))
        labels = np.concatenate(self.labels) if self.labels else None
        return number_from(
            self.subject.metric, self.function, outputs[0] if len(outputs) == 1 else outputs, labels
        )


class Nothing(Scorer):
    """Where a function of the model gives the score, outputs add nothing to it."""

    def see(self, batch: Batch) -> None:
        """See `Scorer.see`."""

    def score(self) -> float:
        """See `Scorer.score`."""
        return math.nan


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    Attributes:
        name: as ``--metric`` takes it.
        unit: written after the number: ``%``, ``dB``, or nothing.
        higher_is_better: the direction.
        description: one sentence; ``{target}`` stands for what outputs are compared with.
        against: what they can be compared with; labels are taken where there are some, if they can be.
        scorer: makes what adds the score up.
        joint: against which of them all float outputs are looked at together where none is named, and not the first.
    """

    name: str
    unit: str
    higher_is_better: bool
    description: str
    against: tuple[Against, ...]
    scorer: Callable[[Subject], Scorer]
    joint: tuple[Against, ...] = ()

    @property
    def unit_of_drops(self) -> str:
        """Written after a difference of scores, with its space: of percentages it is points."""
        return " points" if self.unit == "%" else f" {self.unit}".rstrip()


METRICS = {
    one.name: one
    for one in (
        Metric(
            "top1",
            "%",
            True,
            "share of samples whose largest output is their label",
            ("labels",),
            lambda subject: Hits(subject, 1),
        ),
        Metric(
            "top5",
            "%",
            True,
            "share of samples whose label is among the five largest outputs",
            ("labels",),
            lambda subject: Hits(subject, 5),
        ),
        Metric(
            "spearman",
            "",
            True,
            "Spearman's rank correlation of the outputs with {target}",
            ("labels",),
            Spearman,
        ),
        Metric(
            "mse",
            "",
            False,
            "mean squared difference of the outputs from {target}",
            ("labels", "original"),
            MeanSquaredError,
            ("original",),
        ),
        Metric(
            "psnr",
            "dB",
            True,
            "peak signal-to-noise ratio: the squared range of {target} over the mean squared difference",
            ("labels", "original"),
            PeakRatio,
            ("original",),
        ),
        Metric(
            "cosine",
            "%",
            True,
            "mean cosine of the outputs with {target}, times 100",
            ("labels", "original"),
            Cosine,
            ("original",),
        ),
        Metric(
            "agreement",
            "%",
            True,
            "share of samples whose largest output is the original's",
            ("original",),
            Agreement,
        ),
    )
}


def number_from(name: str, function: Callable[..., Any], *arguments: Any) -> float:
    """What a function of the user's own returns; what it prints goes to standard error.

    Raises:
        InputError: it raises, or returns something else than one number.
    """
    with contextlib.redirect_stdout(sys.stderr):
        try:
            value = function(*arguments)
        except (Exception, SystemExit) as error:
            raise InputError(f"metric {name!r}: it raised {describe(error)}") from error
    return as_number(name, value)


def as_number(name: str, value: Any) -> float:
    """A returned score as a float. Raises InputError for what is not one number."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if array.size != 1 or array.dtype.kind not in "iufb":
            raise TypeError
        return float(array.reshape(()))
    except (TypeError, ValueError):
        raise InputError(
            f"metric {name!r}: it returned {type(value).__name__}; it must return one number"
        ) from None


def _classes(subject: Subject, output: np.ndarray) -> np.ndarray:
    if output.ndim != 2 or output.shape[1] < 2:
        raise subject.refused(
            f"needs an output [samples, classes], but {subject.scored} is {list(output.shape)}"
        )
    return output


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of one element after the first."""
    return (*shape[:1], *(dim for dim in shape[1:] if dim != 1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
