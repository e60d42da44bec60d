"""Ranges that were learned in training take the place of observed ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fewbits.distance import distance
from fewbits.engines.engine import Session
from fewbits.origin import Trained
from fewbits.planning.stats import Histogram, Stats


def with_learned(stats: Stats, session: Session, trained: Trained) -> Stats:
    """The statistics, with the learned range of every tensor that holds what a trained one holds for the same inputs.

    Args:
        stats: as observed.
        session: of the file, giving those tensors.
        trained: the ranges, and what their tensors hold.
    """
    got = session.run(trained.feeds)
    found = dict(stats.tensors)
    for name in found.keys() & got.keys():
        for values, (low, high) in zip(trained.values, trained.ranges, strict=True):
            if _same(values, got[name]):
                learned = Histogram(low, max(high, np.nextafter(low, np.inf)), np.ones(1), low, high)
                found[name] = replace(found[name], histogram=learned)
    return replace(stats, tensors=found)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """The same numbers, in whatever order of axes."""
    return a.size == b.size and distance(np.sort(a, axis=None), np.sort(b, axis=None)) is None
