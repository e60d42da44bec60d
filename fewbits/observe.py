"""Run a model over data and fill Stats: the one place where a model meets an engine before it is written."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from fewbits.engines.engine import Session
from fewbits.planning.stats import HistogramBuilder, Stats, TensorStats
from fewbits.samples import Samples

BATCH_BYTES = 1 << 26  # of observed tensors held at a time: bounds the memory, whatever the number of samples
MAX_BATCH = 32
VALUES_PER_BATCH = 1 << 19  # of one tensor are counted in its histogram; extremes are taken over all
MAX_ROWS = 512


def observe(
    session: Session,
    samples: Samples,
    tensors: Collection[str],
    rows_of: Collection[str],
    progress: Callable[[int], None] = lambda done: None,
) -> Stats:
    """Stream the samples through and keep histograms, extremes and a few rows; memory does not grow with them.

    Args:
        session: of a model that gives ``tensors`` as outputs.
        samples: the calibration data.
        tensors: names of the tensors to observe.
        rows_of: those of them whose rows (along the last axis) are kept as well.
        progress: called with the number of samples done.

    Raises:
        InputError: the data does not fit the model's inputs, or is empty.
    """
    watchers = {name: _Watcher(name in rows_of) for name in tensors}
    done = 0
    for feeds, _ in samples.batches(_batch_size(session, samples, tensors)):
        outputs = session.run(feeds)
        for name, watcher in watchers.items():
            watcher.see(outputs[name])
        done += len(next(iter(feeds.values())))
        progress(done)
    return Stats({name: watcher.stats() for name, watcher in watchers.items()}, done)


def _batch_size(session: Session, samples: Samples, tensors: Collection[str]) -> int:
    """How many samples at a time, where the model takes more than one, so that the tensors fit the bound."""
    if any(not isinstance(info.shape[0], str) for info in samples.inputs):
        return max(info.shape[0] for info in samples.inputs if isinstance(info.shape[0], int))
    outputs = session.run(samples.first())
    each = sum(outputs[name].nbytes for name in tensors)
    return max(1, min(MAX_BATCH, BATCH_BYTES // max(each, 1)))


class _Watcher:
    def __init__(self, keep_rows: bool) -> None:
        self.histogram = HistogramBuilder()
        self.rows = _Rows() if keep_rows else None

    def see(self, array: np.ndarray) -> None:
        flat = array.reshape(-1)
        step = -(-flat.size // VALUES_PER_BATCH) | 1  # odd, so that it does not fall in step with channels
        values = np.ascontiguousarray(flat[::step] if step > 1 else flat, dtype=np.float32)
        self.histogram.add(values, float(flat.min()), float(flat.max()))
        if self.rows is not None:
            self.rows.see(array.reshape(-1, array.shape[-1]))

    def stats(self) -> TensorStats:
        return TensorStats(self.histogram.build(), None if self.rows is None else self.rows.array())


class _Rows:
    """At most MAX_ROWS rows at regular distances; the distance doubles whenever there are too many."""

    def __init__(self) -> None:
        self.every, self.seen = 1, 0
        self.kept: list[np.ndarray] = []

    def see(self, rows: np.ndarray) -> None:
        start = -self.seen % self.every
        self.seen += len(rows)
        self.kept.extend(rows[start :: self.every].copy())
        while len(self.kept) > MAX_ROWS:
            self.kept = self.kept[::2]
            self.every *= 2

    def array(self) -> np.ndarray:
        return np.stack(self.kept).astype(np.float32)
