"""How arrays become inputs: scalars, other batch axes, what is given whole, state that goes from step to step."""

import tracemalloc
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.errors import InputError
from fewbits.feeding import Feeding, axes, intake, pairs
from fewbits.planning.model_info import ModelInfo, TensorInfo
from fewbits.samples import open_samples, random_feeds, synthetic

X = TensorInfo("x", "float32", ("N", 3))
RATE = TensorInfo("rate", "int64", ())
MEMORY = TensorInfo("memory", "float32", (2, "N", 4))
TIMES = TensorInfo("times", "float32", ("T", "N", 3))
COUNT = 23


def rows(*shape, count=COUNT):
    """Every value says which sample it belongs to."""
    return np.broadcast_to(
        np.arange(count, dtype=np.float32).reshape(-1, *[1] * len(shape)), (count, *shape)
    ).copy()


def saved(folder, **arrays):
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(params=["archive", "mapping", "batches"])
def given_as(request, tmp_path):
    """The same arrays in every container; a batch has eight samples, and what is whole comes with each."""

    def give(whole=(), **arrays):
        if request.param == "archive":
            return saved(tmp_path, **arrays)
        if request.param == "mapping":
            return arrays
        return [
            {name: array if name in whole else array[at : at + 8] for name, array in arrays.items()}
            for at in range(0, COUNT, 8)
        ]

    return give


# --- scalars ----------------------------------------------------------------------------------------------------


def test_a_scalar_serves_all_samples(given_as):
    samples = open_samples(given_as(whole=("rate",), x=rows(3), rate=np.array(16000)), (X, RATE))
    assert samples.batch is None
    feeds = [feeds for feeds, _ in samples.batches(4)]
    assert [one["x"][:, 0].tolist() for one in feeds] == [
        list(range(i, min(i + 4, 23))) for i in range(0, 23, 4)
    ]
    assert all(one["rate"].shape == () and one["rate"] == 16000 for one in feeds)


def test_a_scalar_for_each_sample_runs_one_at_a_time(given_as):
    samples = open_samples(given_as(x=rows(3), rate=np.arange(COUNT)), (X, RATE))
    assert samples.batch == 1
    found = [
        (float(feeds["x"][0, 0]), int(feeds["rate"]), feeds["rate"].shape) for feeds, _ in samples.batches(1)
    ]
    assert found == [(i, i, ()) for i in range(COUNT)]


def test_a_scalar_that_changes_between_batches_is_not_mixed():
    data = [{"x": rows(3, count=5), "rate": np.array(rate)} for rate in (8, 8, 16)]
    batches = [
        (feeds["x"].shape[0], int(feeds["rate"])) for feeds, _ in open_samples(data, (X, RATE)).batches(4)
    ]
    assert batches == [(4, 8), (4, 8), (2, 8), (4, 16), (1, 16)]


def test_a_model_of_scalars_alone():
    samples = open_samples({"rate": np.array(3)}, (RATE,))
    assert [int(feeds["rate"]) for feeds, _ in samples.batches(32)] == [3]


@pytest.mark.parametrize("shape", [(COUNT, 2), (4,)])
def test_other_numbers_of_scalars_are_refused(shape):
    with pytest.raises(InputError, match=r"'rate' has (shape|4 samples)"):
        open_samples({"x": rows(3), "rate": np.zeros(shape, np.int64)}, (X, RATE)).first()


# --- other axes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, 2])
def test_samples_go_along_the_axis_named(given_as, axis):
    shape = ("T", 5) if axis == 2 else ("T", 3)
    info = TensorInfo("times", "float32", (*shape[:axis], "N", *shape[axis:]))
    data = given_as(times=rows(7, shape[1]), x=rows(3))
    samples = open_samples(data, (info, X), feeding=Feeding({"times": axis}))
    assert samples.batch is None
    first = 0
    for feeds, _ in samples.batches(4):
        count = len(feeds["x"])
        assert feeds["times"].shape == tuple(np.insert((7, shape[1]), axis, count))
        assert feeds["times"].flags.c_contiguous
        assert np.array_equal(np.moveaxis(feeds["times"], axis, 0)[:, 0, 0], np.arange(first, first + count))
        assert samples.size(feeds) == count
        first += count
    assert first == COUNT


def test_only_inputs_with_other_axes():
    samples = open_samples(rows(7, 3), (TIMES,), feeding=Feeding({"times": 1}))
    assert samples.first(5)["times"].shape == (7, 5, 3)
    assert samples.size(samples.first(5)) == 5


def test_an_axis_of_fixed_size_fixes_the_batch():
    fixed = TensorInfo("times", "float32", ("T", 4, 3))
    samples = open_samples(rows(7, 3), (fixed,), feeding=Feeding({"times": 1}))
    assert samples.batch == 4
    assert [feeds["times"].shape for feeds, _ in samples.batches(4)] == [(7, 4, 3)] * 5


def test_what_has_its_batch_elsewhere_is_given_whole(given_as):
    memory = np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    samples = open_samples(given_as(whole=("memory",), x=rows(3), memory=memory), (X, MEMORY))
    assert samples.batch == 1
    for feeds, _ in samples.batches(1):
        assert np.array_equal(feeds["memory"], memory)


def test_what_is_given_whole_for_five_samples_runs_five_at_a_time():
    samples = open_samples({"x": rows(3), "memory": np.zeros((2, 5, 4), np.float32)}, (X, MEMORY))
    assert samples.batch == 5
    assert samples.one_run()["x"].shape == (5, 3)


def test_an_axis_that_another_input_names_is_not_the_batch():
    """Positions, say, one for each place in a sequence."""
    tokens, positions = (
        TensorInfo("ids", "int64", ("N", "length")),
        TensorInfo("positions", "int64", ("length",)),
    )
    data = {"ids": rows(6).astype(np.int64), "positions": np.arange(6)}
    samples = open_samples(data, (positions, tokens))
    assert samples.batch is None
    assert samples.first(4)["positions"].shape == (6,)
    assert samples.first(4)["ids"].shape == (4, 6)


def test_batches_of_other_names_are_batches():
    """Exporters may name the first axis of every input anew."""
    a, b = TensorInfo("a", "float32", ("s0", "s1")), TensorInfo("b", "float32", ("s2", "s3"))
    assert [port.per_sample for port in intake((a, b)).ports] == [True, True]


@pytest.mark.parametrize(("shape", "whole"), [((1, 3), True), ((COUNT, 3), False)])
def test_a_first_axis_of_fixed_size_beside_an_open_one(shape, whole):
    """The data tells: it has one for all, or one for each sample."""
    one = TensorInfo("one", "float32", (1, 3))
    feeds = open_samples({"x": rows(3), "one": np.zeros(shape, np.float32)}, (X, one)).first(1)
    assert feeds["one"].shape == (1, 3)
    assert intake((X, one)).port("one").has_rows(shape) is not whole


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (
            np.zeros((COUNT, 2, 1, 4), np.float32),
            "given whole, since its first axis is not its batch; or per sample",
        ),
        (np.zeros((3, 1, 4), np.float32), "given whole"),
        (np.full((2, 1, 4), np.nan, np.float32), "'memory' has NaN or Inf"),
    ],
)
def test_what_is_given_whole_and_does_not_fit(array, why):
    with pytest.raises(InputError, match=why):
        open_samples({"x": rows(3), "memory": array}, (X, MEMORY)).first()


def test_samples_must_come_first_in_the_array_whatever_the_axis_in_the_model():
    with pytest.raises(InputError, match=r"given per sample: \[samples, 2, 4\]"):
        open_samples(
            {"x": rows(3), "memory": np.zeros((2, COUNT, 4), np.float32)},
            (X, MEMORY),
            feeding=Feeding({"memory": 1}),
        ).first()


def test_arrays_by_columns_are_read_where_they_are_given_whole(tmp_path):
    memory = np.asfortranarray(np.arange(8, dtype=np.float32).reshape(2, 1, 4))
    feeds = open_samples(saved(tmp_path, x=rows(3), memory=memory), (X, MEMORY)).first()
    assert np.array_equal(feeds["memory"], memory)
    with pytest.raises(InputError, match="column order"):
        open_samples(saved(tmp_path, x=np.asfortranarray(rows(3)), memory=memory), (X, MEMORY)).first()


def test_random_samples_fit_every_kind_of_input():
    inputs = (RATE, X, MEMORY, TIMES, TensorInfo("h", "float32", (1, "N", "width")))
    feeding = Feeding({"times": 1}, {"y": "h"})
    samples = synthetic(ModelInfo(inputs[:4], (), ()), 0, feeding=Feeding({"times": 1}))
    feeds = samples.one_run()
    assert {name: array.shape for name, array in feeds.items()} == {
        "rate": (),
        "x": (1, 3),
        "memory": (2, 1, 4),
        "times": (16, 1, 3),
    }
    step = synthetic(ModelInfo(inputs, (), ()), 0, feeding=feeding).one_run()
    assert not step["h"].any() and step["h"].shape == (1, 1, 16)
    exact = (RATE, TensorInfo("times", "float32", (5, 2, 3)))
    assert {name: array.shape for name, array in random_feeds(ModelInfo(exact, (), ()), 0).items()} == {
        "rate": (),
        "times": (5, 2, 3),
    }


# --- what the user says of them ---------------------------------------------------------------------------------

INFO = ModelInfo(
    (X, MEMORY, RATE),
    (TensorInfo("y", "float32", ("N", 1)), TensorInfo("memoryN", "float32", ("a", "N", "b"))),
    (),
)


@pytest.mark.parametrize(
    ("feeding", "why"),
    [
        (Feeding({"z": 1}), "no input 'z'; it has x, memory, rate"),
        (Feeding({"memory": 3}), r"has the axes 0 to 2, but 3"),
        (Feeding({"memory": -1}), "but -1 is given"),
        (Feeding({"rate": 0}), "has no axis, but 0"),
        (
            Feeding(state={"memoryn": "memory"}),
            "no output 'memoryn'; it has y, memoryN; did you mean 'memoryN'",
        ),
        (Feeding(state={"memoryN": "mem"}), "no input 'mem'.*did you mean 'memory'"),
        (
            Feeding(state={"y": "memory"}),
            r"y float32\[N, 1\] cannot feed the input memory float32\[2, N, 4\]",
        ),
        (Feeding(state={"memoryN": "rate"}), "cannot feed the input rate"),
        (Feeding(state={"y": "x", "memoryN": "x"}), "cannot feed|fed by two"),
    ],
)
def test_what_the_model_does_not_have(feeding, why):
    with pytest.raises(InputError, match=why):
        feeding.check(INFO)


def test_sizes_that_differ_cannot_feed_each_other():
    info = ModelInfo((X, MEMORY), (TensorInfo("out", "float32", (2, "N", 5)),), ())
    with pytest.raises(InputError, match="cannot feed"):
        Feeding(state={"out": "memory"}).check(info)


def test_one_input_cannot_be_fed_twice_nor_all_of_them():
    info = ModelInfo((MEMORY, X), (MEMORY, TensorInfo("b", "float32", ()), X), ())
    with pytest.raises(InputError, match="'memory' is fed by two outputs"):
        Feeding(state={"memory": "memory", "b": "memory"}).check(info)
    with pytest.raises(InputError, match="every input is fed by the step before"):
        Feeding(state={"memory": "memory", "x": "x"}).check(info)


def test_pairs_as_they_are_written():
    assert pairs(["stateN=state", "a=b=c"], "--state", "") == {"stateN": "state", "a=b": "c"}
    assert axes(["x=1", "y=0"], "--batch-axis") == {"x": 1, "y": 0}
    for wrong in ("state", "=state", "stateN="):
        with pytest.raises(InputError, match=r"--state .*write it as OUTPUT=INPUT"):
            pairs([wrong], "--state", "OUTPUT=INPUT")
    with pytest.raises(InputError, match="'a' is given twice"):
        pairs(["a=b", "a=c"], "--state", "")
    with pytest.raises(InputError, match="'first' is no axis"):
        axes(["x=first"], "--batch-axis")


# --- state ------------------------------------------------------------------------------------------------------

STATE = Feeding(state={"memoryN": "memory"})


class Adding:
    """A model that adds what it sees to its memory, and gives how much it has seen."""

    input_names, output_names = ("x", "memory"), ("y", "memoryN")

    def __init__(self):
        self.calls = 0

    def run(self, feeds):
        self.calls += 1
        assert set(feeds) == {"x", "memory"}
        assert feeds["x"].shape == (1, 3) and feeds["memory"].shape == (2, 1, 4)
        memory = feeds["memory"] + feeds["x"].sum()
        return {"y": memory[:1, :, 0], "memoryN": memory}


def seen(samples, size, session=None):
    """The first result of every step."""
    running = samples.session(session or Adding())
    found = []
    for feeds, _ in samples.batches(size):
        outputs = running.run(feeds)
        assert len(outputs["y"]) == samples.size(feeds)
        assert len(outputs["memoryN"]) == 2 * samples.size(feeds)
        found += outputs["y"][:, 0].tolist()
    return found


def sums(values, starts=(0,), first=0.0):
    """What :class:`Adding` gives for steps of three equal values each."""
    total, found = first, []
    for number, value in enumerate(values):
        total = (first if number in starts else total) + 3 * float(value)
        found.append(total)
    return found


@pytest.mark.parametrize("size", [1, 7, 100])
def test_each_step_gets_the_state_of_the_one_before(given_as, size):
    samples = open_samples(given_as(x=rows(3)), (X, MEMORY), feeding=STATE)
    assert samples.batch is None
    assert seen(samples, size) == sums(range(COUNT))


@given(
    starts=st.sets(st.integers(1, COUNT - 1)),
    cuts=st.sets(st.integers(1, COUNT - 1)),
    size=st.integers(1, COUNT + 2),
)
@settings(max_examples=60, deadline=None)
def test_sequences_start_anew_wherever_batches_are_cut(starts, cuts, size):
    """However the data comes, and however much of it is run at a time."""
    number = (
        np.searchsorted(sorted(starts), np.arange(COUNT), side="right") % 2
    )  # the same number may come again
    edges = [0, *sorted(cuts), COUNT]
    data = [{"x": rows(3)[a:b], "sequence": number[a:b]} for a, b in pairwise(edges)]
    samples = open_samples(data, (X, MEMORY), feeding=STATE)
    assert seen(samples, size) == sums(range(COUNT), {0, *starts})


@pytest.mark.parametrize("each", [False, True])
def test_a_sequence_starts_as_the_data_says(given_as, each):
    start = np.full((COUNT, 2, 4) if each else (2, 1, 4), 100, np.float32)
    if each:
        start[1:] = -1  # only that of the first step counts
    data = given_as(whole=() if each else ("memory",), x=rows(3), memory=start)
    samples = open_samples(data, (X, MEMORY), feeding=Feeding(state=STATE.state))
    assert seen(samples, 5) == sums(range(COUNT), first=100.0)
    assert np.all(samples.one_run()["memory"] == 100)


def test_a_scalar_beside_the_state():
    class Rated(Adding):
        input_names = ("x", "memory", "rate")

        def run(self, feeds):
            assert feeds["rate"].shape == ()
            return super().run({"x": feeds["x"] * feeds.pop("rate"), "memory": feeds["memory"]})

    inputs = (X, MEMORY, RATE)
    whole = open_samples({"x": rows(3), "rate": np.array(2)}, inputs, feeding=STATE)
    each = open_samples({"x": rows(3), "rate": np.arange(COUNT)}, inputs, feeding=STATE)
    assert seen(whole, 4, Rated()) == sums([2 * i for i in range(COUNT)])
    assert seen(each, 4, Rated()) == sums([i * i for i in range(COUNT)])
    assert set(whole.one_run()) == {"x", "memory", "rate"}


def test_the_last_quarter_of_one_sequence_is_kept_for_scoring():
    calibration, scoring = open_samples({"x": rows(3, count=24)}, (X, MEMORY), feeding=STATE).split()
    assert seen(calibration, 5) == sums(range(18))
    assert seen(scoring, 5) == sums(range(18, 24))
    assert scoring.part == "the last quarter of the steps"


def test_every_fourth_of_many_sequences_is_kept_for_scoring():
    data = {"x": rows(3, count=24), "sequence": np.arange(24) // 3}
    calibration, scoring = open_samples(data, (X, MEMORY), feeding=STATE).split()
    held = [i for i in range(24) if (i // 3) % 4 == 3]
    rest = [i for i in range(24) if i not in held]
    assert seen(scoring, 4) == sums(held, {0, 3})
    assert seen(calibration, 4) == sums(rest, set(range(0, 18, 3)))
    assert scoring.part == "every fourth sequence"


def test_labels_go_with_their_steps():
    samples = open_samples({"x": rows(3), "labels": np.arange(COUNT)}, (X, MEMORY), feeding=STATE)
    labels = [labels.tolist() for _, labels in samples.batches(10)]
    assert [label for batch in labels for label in batch] == list(range(COUNT))
    assert samples.has_labels()


def test_state_is_not_a_result_where_there_are_others():
    samples = open_samples(rows(3), (X, MEMORY), feeding=STATE)
    assert samples.results(["y", "memoryN"]) == ("y",)
    assert samples.results(["memoryN"]) == ("memoryN",)


def test_memory_is_flat_in_the_number_of_steps():
    peaks = {}
    for count in (1_000, 10_000):
        data = [{"x": rows(3, count=100)}] * (count // 100)
        samples = open_samples(data, (X, MEMORY), feeding=STATE)
        model = Adding()
        tracemalloc.start()
        running = samples.session(model)
        for feeds, _ in samples.batches(32):
            running.run(feeds)
        _, peaks[count] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert model.calls == count
    assert (
        peaks[10_000] < peaks[1_000] + 100_000
    )  # bytes; the states of all steps would be more than a million


@pytest.mark.parametrize(
    ("inputs", "data", "why"),
    [
        (
            (TensorInfo("x", "float32", (4, 3)), TensorInfo("memory", "float32", (2, 4, 4))),
            {"x": rows(3)},
            "takes 4 samples at a time .* a step is one",
        ),
        (
            (X, TensorInfo("memory", "float32", ("N", "past", 4))),
            {"x": rows(3)},
            "axis 1 of memory .* is open, so no zeros .*--batch-axis memory=1",
        ),
        ((X, MEMORY), {"x": rows(3), "memory": np.zeros((2, 5, 4), np.float32)}, r"'memory' has shape"),
        ((X, MEMORY), {"x": rows(3), "sequence": np.zeros(5)}, "5 sequence for 23 samples"),
        (
            (X, MEMORY),
            {"memory": np.zeros((2, 1, 4), np.float32)},
            r"has arrays \['memory'\].*memory: from the step before",
        ),
        ((X, MEMORY), {"x": rows(3), "other": rows(3)}, r"has arrays \['other', 'x'\]"),
    ],
)
def test_sequences_that_cannot_be_run(inputs, data, why):
    with pytest.raises(InputError, match=why):
        open_samples(data, inputs, feeding=STATE).one_run()


def test_a_state_that_grows_starts_as_the_data_says():
    """Such as the keys and values that a decoder keeps."""
    past = TensorInfo("past", "float32", (1, "length", 2))

    class Growing:
        input_names, output_names = ("x", "past"), ("y", "pastN")

        def run(self, feeds):
            grown = np.concatenate([feeds["past"], feeds["x"][:, None, :2]], axis=1)
            return {"y": np.array([[grown.shape[1]]], np.float32), "pastN": grown}

    feeding = Feeding(state={"pastN": "past"})
    samples = open_samples(
        {"x": rows(3), "past": np.zeros((1, 0, 2), np.float32)}, (X, past), feeding=feeding
    )
    running = samples.session(Growing())
    assert [running.run(feeds)["y"][-1, 0] for feeds, _ in samples.batches(8)] == [8, 16, 23]


def test_without_state_a_session_runs_as_it_is():
    session = SimpleNamespace(input_names=("x",), output_names=("y",), run=lambda feeds: {})
    assert open_samples(rows(3), (X,)).session(session) is session
