"""Scores of one set of outputs against float32's outputs or labels: NumPy arrays in, one number out."""

from __future__ import annotations

import numpy as np


def sqnr_db(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Signal to quantization noise, all elements: 10 log10(sum r^2 / sum (r - y)^2) in dB; inf if equal."""
    reference, outputs = reference.astype(np.float64), outputs.astype(np.float64)
    noise = np.square(reference - outputs).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(reference).sum() / noise))


def cosine_min(reference: np.ndarray, outputs: np.ndarray) -> float:
    """The smallest cosine between row i of `reference` [n, d] and row i of `outputs` [n, d]."""
    return float((_unit(reference) * _unit(outputs)).sum(axis=1).min())


def neighbour_agreement(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Share of rows whose nearest other row by cosine is the same in both sets [n, d]; 0 to 1."""
    return float((_nearest_other(reference) == _nearest_other(outputs)).mean())


def pair_correlation(outputs: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's correlation, in percent, of cosines with scores [n]: of row i and row n + i of `outputs` [2 n, d]."""
    from scipy.stats import spearmanr

    first, second = np.split(_unit(outputs), 2)
    return float(100 * spearmanr((first * second).sum(axis=1), scores).statistic)


def different_predictions(reference: np.ndarray, outputs: np.ndarray) -> int:
    """Number of rows whose largest entry lies elsewhere than in `reference` [n, classes]."""
    return int((reference.argmax(axis=1) != outputs.argmax(axis=1)).sum())


def correct(outputs: np.ndarray, labels: np.ndarray) -> int:
    """Number of rows of `outputs` [n, classes] whose largest entry is at `labels` [n]."""
    return int((outputs.argmax(axis=1) == labels).sum())


def lost(reference: np.ndarray, outputs: np.ndarray, labels: np.ndarray) -> int:
    """Number of rows that `reference` has right and `outputs` has wrong."""
    return int(((reference.argmax(axis=1) == labels) & (outputs.argmax(axis=1) != labels)).sum())


def _nearest_other(vectors: np.ndarray) -> np.ndarray:
    similarity = _unit(vectors) @ _unit(vectors).T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
