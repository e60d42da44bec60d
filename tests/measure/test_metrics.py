"""Every metric against what other libraries or the definition say, batch by batch and at once."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import mean_squared_error, top_k_accuracy_score

from fewbits.errors import InputError
from fewbits.measure.metrics import METRICS, SAME_DB, Batch, Function, Subject, as_number

RNG = np.random.default_rng(0)


def scorer(name, outputs, expected=None, labels=None, parts=3, names=("y",), place=0):
    """A scorer that has seen all of it, in parts."""
    against = "original" if labels is None else "labels"
    made = METRICS[name].scorer(Subject(name, "scored.npz", against, names, place))
    return fed(made, outputs, expected, labels, parts)


def fed(made, outputs, expected=None, labels=None, parts=3):
    count = len(outputs[0])
    for where in np.array_split(np.arange(count), parts):
        made.see(
            Batch(
                len(where),
                [array[where] for array in outputs],
                [array[where] for array in (outputs if expected is None else expected)],
                None if labels is None else labels[where],
            )
        )
    return made


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "most"), [("top1", 1), ("top5", 5)])
def test_hits_are_those_of_scikit_learn(name, most):
    y, labels = normal(200, 12), RNG.integers(0, 12, 200)
    assert scorer(name, [y], labels=labels).score() == pytest.approx(
        100 * top_k_accuracy_score(labels, y, k=most, labels=np.arange(12))
    )


def test_of_equal_entries_the_first_is_the_largest():
    y = np.zeros((8, 8), np.float32)
    labels = np.arange(8)
    assert scorer("top1", [y], labels=labels).score() == 100 / 8
    assert scorer("top5", [y], labels=labels).score() == 500 / 8
    assert scorer("top1", [y], labels=labels).score() == 100 * (y.argmax(axis=1) == labels).mean()


@pytest.mark.parametrize("name", ["top1", "top5"])
def test_a_row_of_nan_hits_nothing(name):
    y = normal(10, 7)
    labels = y.argmax(axis=1)
    y[::2, 3] = np.nan
    assert scorer(name, [y], labels=labels).score() == 50.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=40))
def test_spearman_is_scipys_with_ties_too(pairs):
    got, wanted = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = spearmanr(got, wanted).statistic
    found = scorer("spearman", [got[:, None]], labels=wanted).score()
    assert math.isnan(found) if math.isnan(expected) else found == pytest.approx(expected, abs=1e-12)


def test_mean_squared_error_with_labels_of_either_shape():
    y, targets = normal(50, 1), normal(50, seed=1)
    wanted = mean_squared_error(targets, y[:, 0])
    for labels in (targets, targets[:, None], targets.astype(np.float64)):
        assert scorer("mse", [y], labels=labels).score() == pytest.approx(wanted)


def test_psnr_is_by_definition():
    y, images = normal(20, 3, 8, 8), RNG.random((20, 3, 8, 8), np.float32)
    error = np.square(y.astype(float) - images).mean()
    peak = float(images.max() - images.min())
    assert scorer("psnr", [y], labels=images).score() == pytest.approx(10 * np.log10(peak**2 / error))
    assert scorer("psnr", [images], labels=images).score() == SAME_DB


def test_cosine_with_labels():
    y, targets = normal(30, 16), normal(30, 16, seed=1)
    norms = np.linalg.norm(y, axis=1) * np.linalg.norm(targets, axis=1)
    assert scorer("cosine", [y], labels=targets).score() == pytest.approx(
        100 * ((y * targets).sum(axis=1) / norms).mean(), abs=1e-4
    )


def test_against_the_original_all_float_outputs_count_together():
    a, b, ids = normal(12, 4), normal(12, 2, 3, seed=1), np.arange(12)
    outputs, expected = [a, b, ids], [a + 1, b - 2, ids + 1]
    names = ("a", "b", "ids")
    joint = scorer("mse", outputs, expected, names=names, place=None)
    assert joint.score() == pytest.approx((4 * 1 + 6 * 4) / 10, rel=1e-5)
    for place, error in ((0, 1.0), (1, 4.0), (2, 1.0)):
        one = scorer("mse", outputs, expected, names=names, place=place)
        assert one.score() == pytest.approx(error, rel=1e-5)


def test_the_original_is_the_best_there_is():
    y = normal(12, 4)
    y[3, 2] = -np.inf  # what is masked
    best = {"mse": 0.0, "psnr": SAME_DB, "cosine": 100.0, "agreement": 100.0}
    assert {name: scorer(name, [y], [y]).score() for name in best} == best


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["mse", "psnr", "spearman"])
def test_outputs_that_are_not_finite_have_no_finite_error(name, bad):
    wanted = normal(12, 1)
    y = wanted.copy()
    y[5] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not math.isfinite(scorer(name, [y], labels=wanted[:, 0]).score())
        if name != "spearman":
            assert not math.isfinite(scorer(name, [y], [wanted]).score())


# --- what a percentage of it is ---------------------------------------------------------------------------------


def test_a_share_to_lose_is_one_of_the_score():
    y, labels = normal(100, 10), RNG.integers(0, 10, 100)
    top1 = scorer("top1", [y], labels=labels)
    assert top1.loss(0.01, top1.score()) == pytest.approx(0.01 * top1.score())
    targets = normal(100, 1, seed=1)
    for name in ("spearman", "mse", "psnr"):
        found = scorer(name, [y[:, :1]], labels=targets)
        assert found.loss(0.02, found.score()) == pytest.approx(0.02 * abs(found.score()))


@pytest.mark.parametrize("share", [0.01, 0.25])
def test_against_the_original_it_is_one_of_its_energy(share):
    """The same error is on the edge of the limit for both."""
    y = 5 * normal(64, 10) + 3
    noise = normal(64, 10, seed=1)
    noise *= np.sqrt(share * np.square(y, dtype=float).sum() / np.square(noise, dtype=float).sum())
    for name in ("mse", "psnr"):
        original, candidate = scorer(name, [y], [y]), scorer(name, [y + noise], [y])
        drop = abs(original.score() - candidate.score())
        assert drop == pytest.approx(original.loss(share, original.score()), rel=1e-4)
        assert original.loss(0.0, original.score()) == 0.0


# --- what they are not for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "said"),
    [
        ("top1", (9, 4, 4), np.zeros(9, int), "[samples, classes]"),
        ("top1", (9, 1), np.zeros(9, int), "[samples, classes]"),
        ("top1", (9, 4), np.full(9, 4), "classes 0 to 3 as labels, but they go from 4 to 4"),
        ("top1", (9, 4), np.zeros(9, np.float32), "float targets are for spearman, mse"),
        ("top1", (9, 4), np.zeros((9, 2), int), "shape [3, 2]"),
        ("top5", (9, 5), np.zeros(9, int), "always 100 % for 5 classes; take top1"),
        ("spearman", (9, 2), np.zeros(9), "one value per sample"),
        ("spearman", (9, 1), np.full(9, np.nan), "NaN or Inf"),
        ("mse", (9, 4), np.zeros(9), "a number as label for every value of the output, [3, 4], but labels"),
        ("mse", (9, 4), np.zeros((9, 4)).astype("U1"), "a number as label"),
        ("psnr", (9, 4), np.ones((9, 4)), "values that differ"),
        ("cosine", (9, 1), np.ones(9), "several values per sample"),
    ],
)
def test_what_a_metric_cannot_score_is_said_in_one_line(name, outputs, labels, said):
    with pytest.raises(InputError) as refused:
        scorer(name, [normal(*outputs)], labels=labels).score()
    text = str(refused.value)
    assert said in text
    assert text.startswith(f"scored.npz: metric {name!r} ")
    assert "\n" not in text


def test_of_several_outputs_the_scored_one_is_named():
    with pytest.raises(
        InputError, match=r"the output 'b' is \[3, 2\] \(outputs: a, b; see --metric-output\)"
    ):
        scorer("spearman", [normal(9), normal(9, 2)], labels=np.zeros(9), names=("a", "b"), place=1)


def test_agreement_is_of_classes():
    with pytest.raises(InputError, match="samples, classes"):
        scorer("agreement", [normal(9, 4, 4)])


# --- functions of one's own -------------------------------------------------------------------------------------


def own(function, outputs, labels=None, place=None):
    subject = Subject("m:f", "scored.npz", "labels", tuple("abc"[: len(outputs)]), place)
    return fed(Function(subject, function), outputs, labels=labels).score()


def test_a_function_gets_all_samples_at_once():
    y, z, labels = normal(10, 4), normal(10, seed=1), np.arange(10)
    seen = []

    def keep(outputs, targets):
        seen.append((outputs, targets))
        return 1

    assert own(keep, [y], labels) == 1.0
    np.testing.assert_array_equal(seen[0][0], y)
    np.testing.assert_array_equal(seen[0][1], labels)
    own(keep, [y, z])
    assert isinstance(seen[1][0], tuple)
    np.testing.assert_array_equal(seen[1][0][1], z)
    assert seen[1][1] is None
    own(keep, [y, z], place=1)
    np.testing.assert_array_equal(seen[2][0], z)


def test_what_it_prints_is_not_on_standard_output(capsys):
    own(lambda y, labels: print("hello") or 1.0, [normal(4)])
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize("value", [1, 1.0, True, np.float32(1), np.ones((1, 1)), [1.0]])
def test_anything_that_is_one_number_is_taken(value):
    assert as_number("m:f", value) == 1.0


def test_a_tensor_is_a_number_too():
    import torch

    assert as_number("m:f", torch.ones(1, requires_grad=True)) == 1.0


@pytest.mark.parametrize("value", [None, "0.9", [1.0, 2.0], {}, np.ones(2), 1j, object()])
def test_what_is_not_one_number_is_said(value):
    with pytest.raises(InputError, match=f"metric 'm:f': it returned {type(value).__name__}; it must"):
        as_number("m:f", value)


def test_what_it_raises_is_said():
    with pytest.raises(InputError, match="metric 'm:f': it raised ZeroDivisionError: division by zero"):
        own(lambda y, labels: 1 / 0, [normal(4)])
