"""Scores and agreement, against what numpy says, and where outputs are NaN or infinite."""

import warnings

import numpy as np
import pytest

from fewbits.errors import InputError
from fewbits.measure.quality import Reference, score
from fewbits.planning.model_info import TensorInfo
from fewbits.samples import open_samples
from fewbits.scoring import Wish, metric_for

CLASSES, COUNT = 5, 13


class Gives:
    """Anything that runs: the given outputs, batch after batch, whatever goes in."""

    def __init__(self, *outputs):
        self.outputs, self.at = outputs, 0

    def run(self, feeds):
        size = len(feeds["x"])
        self.at += size
        return {str(i): array[self.at - size : self.at] for i, array in enumerate(self.outputs)}


def random(seed=0, shape=(COUNT, CLASSES)):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def judge(folder, original, candidate, labels=None, batch=4):
    """The candidate's quality by the metric that the original's outputs suggest."""
    data = {"x": np.zeros((COUNT, 3), np.float32)}
    if labels is not None:
        data["labels"] = labels
    samples = open_samples(data, (TensorInfo("x", "float32", ("N", 3)),))
    reference = Reference(folder)
    reference.record(Gives(*original), samples, batch)
    metric, subject = metric_for(Wish(), samples, reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return metric.name, score(Gives(*candidate), samples, batch, reference, metric.scorer(subject))


def test_top1_with_labels(tmp_path):
    original, candidate = random(0), random(1)
    labels = np.arange(COUNT) % CLASSES
    metric, quality = judge(tmp_path, [original], [candidate], labels)
    assert metric == "top1"
    assert quality.score == pytest.approx(100 * (candidate.argmax(1) == labels).mean())
    assert quality.agreement.top1 == (candidate.argmax(1) == original.argmax(1)).mean()
    assert quality.samples == COUNT


def test_agreement_without_labels(tmp_path):
    original, candidate = random(0), random(0) + 0.5 * random(1)
    metric, quality = judge(tmp_path, [original], [candidate])
    assert metric == "agreement"
    assert quality.score == pytest.approx(100 * (candidate.argmax(1) == original.argmax(1)).mean())
    a, b = original.astype(float), candidate.astype(float)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert quality.agreement.cosine_min == pytest.approx(cosine.min())
    assert quality.agreement.cosine_mean == pytest.approx(cosine.mean())
    assert quality.agreement.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()))


def test_embeddings_and_outputs_without_classes_are_scored_by_cosine(tmp_path):
    unit = random() / np.linalg.norm(random(), axis=1, keepdims=True)
    for number, original in enumerate((unit, random(shape=(COUNT, 4, 4)), random(shape=(COUNT, 1)))):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert judge(folder, [original], [original])[0] == "cosine"


def test_the_original_agrees_with_itself_wholly(tmp_path):
    masked = random()
    masked[:, 2] = -np.inf  # as scores of what is masked out are
    masked[3] = 0
    _, quality = judge(tmp_path, [masked, random(shape=(COUNT, 2, 2))], [masked, random(shape=(COUNT, 2, 2))])
    assert (quality.score, quality.agreement.top1) == (100.0, 1.0)
    assert (quality.agreement.cosine_min, quality.agreement.sqnr_db) == (1.0, float("inf"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(4, 0), (slice(None), slice(None))])
def test_values_that_are_not_finite_are_no_agreement_and_no_warning(tmp_path, bad, where):
    original, candidate = random(), random().copy()
    candidate[where] = bad
    _, quality = judge(tmp_path, [original], [candidate])
    assert quality.agreement.sqnr_db == float("-inf")
    assert quality.agreement.cosine_min == -1.0


def test_a_row_of_nan_has_no_largest_entry(tmp_path):
    """argmax calls NaN the largest; a model whose outputs all are would be right wherever the label is 0."""
    nan = np.full((COUNT, CLASSES), np.nan, np.float32)
    labels = np.zeros(COUNT, np.int64)
    _, quality = judge(tmp_path, [random()], [nan], labels)
    assert (quality.score, quality.agreement.top1) == (0.0, 0.0)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="classes 0 to 4"):
        judge(tmp_path, [random()], [random()], np.full(COUNT, CLASSES))
