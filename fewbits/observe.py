"""Run a model over data and fill Stats: the one place where a model meets an engine before it is written."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from fewbits.engines.engine import Session
from fewbits.planning.stats import HistogramBuilder, Stats, TensorStats
from fewbits.samples import Samples

BATCH_BYTES = 1 << 26  # of observed tensors held at a time: bounds the memory, whatever the number of samples
MAX_BATCH = 32
VALUES_PER_BATCH = 1 << 17  # of one tensor are counted in its histogram; extremes are taken over all
MAX_ROWS, ROW_BYTES = 2048, 1 << 24  # of one tensor are kept at most as examples
MAX_SAMPLES, SAMPLE_BYTES = 512, 1 << 23
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 over the golden ratio, odd


def observe(
    session: Session,
    samples: Samples,
    tensors: Collection[str],
    rows_of: Collection[str],
    samples_of: Collection[str],
    batch: int | None,
    progress: Callable[[int], None] = lambda done: None,
) -> Stats:
    """Stream the samples through and keep histograms, extremes and a few rows; memory does not grow with them.

    A tensor that is empty for every sample is left out.

    Args:
        session: of a model that gives ``tensors`` as outputs; it runs the samples' feeds.
        samples: the calibration data.
        tensors: names of the tensors to observe.
        rows_of: those of them of which some rows (along the last axis) are kept as examples.
        samples_of: those of them of which some whole samples are kept.
        batch: the number of samples the model takes at a time, where that is fixed.
        progress: called with the number of samples done.

    Raises:
        InputError: the data does not fit the model's inputs, or is empty.
    """
    watchers = {name: _Watcher() for name in tensors}
    rows = {name: _Examples(MAX_ROWS, ROW_BYTES) for name in rows_of}
    channels = {name: _Channels() for name in rows_of}
    whole = {name: _Examples(MAX_SAMPLES, SAMPLE_BYTES) for name in samples_of}
    done = 0
    for feeds, _ in samples.batches(batch or _batch_size(session, samples, tensors)):
        outputs = session.run(feeds)
        for name, watcher in watchers.items():
            watcher.see(outputs[name])
        for name, examples in rows.items():
            matrix = outputs[name].reshape(-1, outputs[name].shape[-1])
            examples.see(matrix)
            channels[name].see(matrix)
        for name, examples in whole.items():
            examples.see(outputs[name])
        done += samples.size(feeds)
        progress(done)
    kept = {name: examples.array() for name, examples in (rows | whole).items() if examples.kept}
    found = {}
    for name, watcher in watchers.items():
        if not watcher.reached:
            continue
        ends = channels.get(name)
        low, high = (None, None) if ends is None else (ends.low, ends.high)
        found[name] = TensorStats(watcher.histogram.build(), kept.get(name), low, high, watcher.finite)
    return Stats(found, done)


def _batch_size(session: Session, samples: Samples, tensors: Collection[str]) -> int:
    """How many samples at a time, so that the tensors fit the bound."""
    outputs = session.run(samples.first())
    each = sum(outputs[name].nbytes for name in tensors)
    return max(1, min(MAX_BATCH, BATCH_BYTES // max(each, 1)))


class _Watcher:
    def __init__(self) -> None:
        self.histogram = HistogramBuilder()
        self.finite = True
        self.reached = False

    def see(self, array: np.ndarray) -> None:
        if not array.size:
            return
        self.reached = True
        flat = array.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.finite = False
            return
        step = -(-flat.size // VALUES_PER_BATCH) | 1  # odd, so that it does not fall in step with channels
        values = np.ascontiguousarray(flat[::step] if step > 1 else flat, dtype=np.float32)
        self.histogram.add(values, low, high)


class _Channels:
    """Exact extremes of every channel: a few tokens may hold values a hundred times those of all others."""

    def __init__(self) -> None:
        self.low: np.ndarray | None = None
        self.high: np.ndarray | None = None

    def see(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        low, high = rows.min(axis=0), rows.max(axis=0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)


class _Examples:
    """Items spread evenly over all that is seen, within a bound; half of them go whenever there are too many.

    An item is kept where its number times the golden ratio, a fraction of 2 ** 64, is under a threshold that halves:
    such numbers fall in step with no period. (Items at regular distances did: of sequences of 128 tokens they were
    mostly the first tokens, which have activations a hundred times those of the others.)
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most, self.most_bytes = most, most_bytes
        self.threshold = (1 << 64) - 1
        self.seen = 0
        self.kept: list[tuple[int, np.ndarray]] = []

    def see(self, items: np.ndarray) -> None:
        if not items.size:
            return
        with np.errstate(over="ignore"):
            places = np.arange(self.seen, self.seen + len(items), dtype=np.uint64) * GOLDEN
        self.seen += len(items)
        limit = max(1, min(self.most, self.most_bytes // max(items[0].nbytes, 1)))
        for index in np.flatnonzero(places <= self.threshold):
            if places[index] > self.threshold:  # it was halved since
                continue
            self.kept.append((int(places[index]), items[index].copy()))
            while len(self.kept) > limit:
                self.threshold >>= 1
                self.kept = [one for one in self.kept if one[0] <= self.threshold]

    def array(self) -> np.ndarray:
        return np.stack([item for _, item in self.kept]).astype(np.float32)
