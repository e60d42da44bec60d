"""What was observed of a model's tensors while it ran over calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fewbits.errors import InputError


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins.

    Attributes:
        low, high: outer edges of the first and the last bin.
        counts: float64 [bins].
        minimum, maximum: of all values seen, exact.
    """

    low: float
    high: float
    counts: np.ndarray
    minimum: float
    maximum: float

    @property
    def centers(self) -> np.ndarray:
        """Middle of each bin, float64 [bins]."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (np.arange(len(self.counts)) + 0.5)


@dataclass(frozen=True)
class TensorStats:
    """One activation.

    Attributes:
        histogram: of its values (a regular subsample of them where a batch is large), extremes exact.
        examples: float32, some of what was seen, spread evenly over the data: rows [n, channels] of the input of
            a linear layer, samples [n, channels, *space] of the input of a convolution; None for other tensors.
        channel_low, channel_high: float32 [channels], extremes over everything seen of each entry of the last axis,
            for the input of a linear layer; None for other tensors.
        finite: no value was NaN or infinite; where one was, no range holds the tensor.
    """

    histogram: Histogram
    examples: np.ndarray | None = None
    channel_low: np.ndarray | None = None
    channel_high: np.ndarray | None = None
    finite: bool = True


@dataclass(frozen=True)
class Stats:
    """Everything observed, by tensor name, and over how many samples."""

    tensors: Mapping[str, TensorStats]
    samples: int

    def __getitem__(self, tensor: str) -> TensorStats:
        if tensor not in self.tensors:
            raise InputError(
                f"no range was observed for tensor {tensor!r}; calibrate with data that reaches it"
            )
        return self.tensors[tensor]


class HistogramBuilder:
    """A histogram whose range grows as values arrive; its memory is fixed, and order hardly matters.

    The range is ``[-w, w]`` or ``[0, w]`` with w a power of two, so that growing merges whole pairs of bins and loses
    nothing: counts are the same as if the final range had been known.
    """

    BINS = 4096

    def __init__(self) -> None:
        self.exponent = -126
        self.counts = np.zeros(self.BINS)
        self.minimum = np.inf
        self.maximum = -np.inf

    def add(self, values: np.ndarray, minimum: float, maximum: float) -> None:
        """Count ``values`` (flat, float32); the extremes may come from a larger set that they were taken from."""
        import torch

        self.minimum = min(self.minimum, minimum)
        self.maximum = max(self.maximum, maximum)
        reach = max(abs(minimum), abs(maximum))
        needed = int(np.frexp(reach)[1]) if reach > 0 else -126
        if needed > self.exponent:
            self._grow(needed)
        # The largest edge, 2^128, is no float32; dividing by a power of two is exact.
        shares = torch.from_numpy(values) * 2.0**-self.exponent
        self.counts += torch.histc(shares, bins=self.BINS, min=-1, max=1).numpy()

    def _grow(self, exponent: int) -> None:
        steps = exponent - self.exponent
        self.exponent = exponent
        if not self.counts.any():
            return
        for _ in range(min(steps, 13)):
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            quarter = self.BINS // 4
            self.counts = np.concatenate([np.zeros(quarter), merged, np.zeros(quarter)])

    def build(self) -> Histogram:
        """The histogram as observed so far, cut to the bins that hold values."""
        edge = 2.0**self.exponent
        used = np.flatnonzero(self.counts)
        if not len(used):
            return Histogram(self.minimum, self.maximum, np.ones(1), self.minimum, self.maximum)
        width = 2 * edge / self.BINS
        first, last = int(used[0]), int(used[-1]) + 1
        return Histogram(
            -edge + first * width,
            -edge + last * width,
            self.counts[first:last].copy(),
            self.minimum,
            self.maximum,
        )
