"""The user's data as a stream: read in slices, split, labelled, in every container and dtype that feeds have."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.errors import InputError
from fewbits.npz import ROW_BYTES
from fewbits.planning.model_info import ModelInfo, TensorInfo
from fewbits.samples import open_samples, synthetic

ONE = (TensorInfo("x", "float32", ("N", 3)),)
TWO = (TensorInfo("ids", "int64", ("N", 5)), TensorInfo("mask", "float32", ("N", 5)))
COUNT = 23


def rows(count=COUNT, width=3):
    """Every value says which sample it belongs to."""
    return (np.arange(count, dtype=np.float32)[:, None] + np.zeros(width, np.float32)).astype(np.float32)


def pair(count=COUNT):
    return {"ids": rows(count, 5).astype(np.int64), "mask": rows(count, 5)}


def saved(folder, compressed=False, **arrays):
    path = folder / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def numbers(samples, size=4):
    """The samples' numbers as they come, batch by batch."""
    return [feeds[samples.inputs[0].name][:, 0].astype(int).tolist() for feeds, _ in samples.batches(size)]


def joined(samples, size=4):
    return [number for batch in numbers(samples, size) for number in batch]


# --- an archive -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("size", [1, 4, 23, 100])
def test_an_archive_in_batches_of_any_size_again_and_again(tmp_path, size, compressed):
    samples = open_samples(saved(tmp_path, compressed, x=rows()), ONE)
    for _ in range(2):
        batches = numbers(samples, size)
        assert [number for batch in batches for number in batch] == list(range(COUNT))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert 0 < len(batches[-1]) <= size


def test_an_archive_is_read_in_slices(tmp_path):
    """The file is many times what is held; compressed, so that the disk is not filled."""
    width = 1 << 14
    count = 12 * ROW_BYTES // (4 * width)
    path = saved(tmp_path, compressed=True, x=rows(count, width), labels=np.arange(count))
    samples = open_samples(path, (TensorInfo("x", "float32", ("N", width)),))
    tracemalloc.start()
    seen = labelled = 0
    for feeds, labels in samples.batches(8):
        assert (feeds["x"][:, -1] == np.arange(seen, seen + len(feeds["x"]))).all()
        assert (labels == feeds["x"][:, 0]).all()
        seen, labelled = seen + len(feeds["x"]), labelled + len(labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == labelled == count
    assert peak < 5 * ROW_BYTES


def test_only_what_is_asked_for_is_read(tmp_path):
    width = 1 << 14
    path = saved(tmp_path, compressed=True, x=rows(12 * ROW_BYTES // (4 * width), width))
    samples = open_samples(path, (TensorInfo("x", "float32", ("N", width)),))
    tracemalloc.start()
    assert samples.first(2)["x"].shape == (2, width)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * ROW_BYTES


def test_arrays_are_matched_by_name(tmp_path):
    arrays = pair()
    samples = open_samples(saved(tmp_path, mask=arrays["mask"], ids=arrays["ids"]), TWO)
    feeds = samples.first(COUNT)
    assert feeds["ids"].dtype == np.int64
    assert all(np.array_equal(feeds[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("name", ["x", "arr_0", "pixels"])
def test_one_array_serves_a_model_with_one_input_whatever_it_is_called(tmp_path, name):
    samples = open_samples(saved(tmp_path, **{name: rows()}), ONE)
    assert joined(samples) == list(range(COUNT))
    path = tmp_path / "positional.npz"
    np.savez(path, rows())
    assert joined(open_samples(path, ONE)) == list(range(COUNT))


def test_names_must_fit_where_there_are_several(tmp_path):
    with pytest.raises(InputError, match=r"data\.npz: has arrays \['ids', 'other'\].*mask float32\[N, 5\]"):
        open_samples(saved(tmp_path, ids=pair()["ids"], other=pair()["mask"]), TWO).first()


# --- labels and parts -------------------------------------------------------------------------------------------

WITH_LABELS = {
    "archive": lambda folder: saved(folder, x=rows(), labels=np.arange(COUNT)),
    "mapping": lambda folder: {"x": rows(), "labels": np.arange(COUNT)},
    "batches": lambda folder: [(rows()[i : i + 5], np.arange(COUNT)[i : i + 5]) for i in range(0, COUNT, 5)],
    "batches by name": lambda folder: [
        {"x": rows()[i : i + 5], "labels": np.arange(COUNT)[i : i + 5]} for i in range(0, COUNT, 5)
    ],
}


@pytest.mark.parametrize("size", [1, 4, 7, 64])
@pytest.mark.parametrize("kind", WITH_LABELS)
def test_labels_stay_with_their_samples(tmp_path, kind, size):
    samples = open_samples(WITH_LABELS[kind](tmp_path), ONE)
    assert samples.has_labels()
    for part in (samples, *samples.split()):
        seen = 0
        for feeds, labels in part.batches(size):
            assert (labels == feeds["x"][:, 0]).all()
            assert set(feeds) == {"x"}
            seen += len(labels)
        assert seen > 0


def test_without_labels():
    assert not open_samples(rows(), ONE).has_labels()
    assert [labels for _, labels in open_samples(rows(), ONE).batches(8)] == [None] * 3


def test_a_label_for_every_sample(tmp_path):
    with pytest.raises(InputError, match="differ in their number of samples"):
        open_samples(saved(tmp_path, x=rows(), labels=np.arange(5)), ONE).first()
    with pytest.raises(InputError, match="5 labels for 23 samples"):
        open_samples({"x": rows(), "labels": np.arange(5)}, ONE).first()


@settings(deadline=None)
@given(st.integers(4, 60), st.integers(1, 20), st.lists(st.integers(1, 9), min_size=1))
def test_parts_have_no_sample_in_common_and_lose_none(count, size, lengths):
    """However the data is cut into batches."""
    batches, start = [], 0
    while start < count:
        length = lengths[len(batches) % len(lengths)]
        batches.append(rows(count)[start : start + length])
        start += length
    samples = open_samples(batches, ONE)
    calibration, scoring = samples.split()
    assert sorted(joined(calibration, size) + joined(scoring, size)) == list(range(count))
    assert joined(scoring, size) == list(range(3, count, 4))
    assert joined(samples, size) == list(range(count))


def test_too_few_to_keep_some_for_scoring():
    with pytest.raises(InputError, match="at least 4"):
        open_samples(rows(3), ONE).split()[1].first()


# --- containers -------------------------------------------------------------------------------------------------


def torch_dataset(arrays, batch):
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*map(torch.from_numpy, arrays)), batch_size=batch)


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_a_data_loader(batch):
    samples = open_samples(torch_dataset([rows()], batch), ONE)
    assert joined(samples) == list(range(COUNT))
    labelled = open_samples(torch_dataset([rows(), np.arange(COUNT)], batch), ONE)
    assert labelled.has_labels()
    assert all((labels == feeds["x"][:, 0]).all() for feeds, labels in labelled.batches(4))
    two = open_samples(torch_dataset([pair()["ids"], pair()["mask"]], batch), TWO)
    assert joined(two) == list(range(COUNT))
    assert not two.has_labels()


def test_arrays_and_tensors():
    import torch

    arrays = pair()
    for data in (
        arrays,
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        [arrays["ids"], arrays["mask"]],
        (torch.from_numpy(arrays["ids"]), arrays["mask"]),
    ):
        assert joined(open_samples(data, TWO)) == list(range(COUNT))
    for data in (rows(), torch.from_numpy(rows()).requires_grad_(), [rows()], {"x": rows()}):
        assert joined(open_samples(data, ONE)) == list(range(COUNT))


def test_batches_as_arrays_tuples_and_mappings():
    parts = [slice(0, 7), slice(7, 8), slice(8, COUNT)]
    arrays = pair()
    for batches in (
        [{name: array[part] for name, array in arrays.items()} for part in parts],
        [(arrays["ids"][part], arrays["mask"][part]) for part in parts],
        [[arrays["ids"][part], arrays["mask"][part]] for part in parts],
    ):
        assert joined(open_samples(batches, TWO)) == list(range(COUNT))
    assert joined(open_samples([rows()[part] for part in parts], ONE)) == list(range(COUNT))


def test_something_that_makes_batches_each_time_it_is_run_through():
    class Batches:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return (rows()[i : i + 5] for i in range(0, COUNT, 5))

    batches = Batches()
    samples = open_samples(batches, ONE)
    assert joined(samples) == joined(samples) == list(range(COUNT))
    assert batches.passes == 2


def test_what_can_be_run_through_only_once_is_refused():
    with pytest.raises(InputError, match="only once"):
        open_samples((rows() for _ in range(3)), ONE)


@pytest.mark.parametrize("data", [3, None, object()])
def test_what_is_no_data_is_refused(data):
    with pytest.raises(InputError, match="allowed are"):
        open_samples(data, ONE)


def test_a_batch_with_another_number_of_arrays_is_refused():
    with pytest.raises(InputError, match="a batch of 4 items, but the model has 2 inputs"):
        open_samples([(rows(2, 5),) * 4], TWO).first()


def test_a_batch_that_names_a_signature_is_refused_where_there_are_none():
    samples = open_samples([("serve", {"x": rows()})], ONE)
    with pytest.raises(
        InputError, match=r"a batch for the signature 'serve', which only \.tflite files have"
    ):
        next(samples.batches(4))


# --- a fixed batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 7, 8, 23])
def test_a_model_that_takes_four_at_a_time_gets_whole_batches(count):
    fixed = (TensorInfo("x", "float32", (4, 3)),)
    batches = numbers(open_samples(rows(count), fixed), 4)
    assert batches == [list(range(i, i + 4)) for i in range(0, count - 3, 4)]


def test_too_few_for_a_whole_batch():
    fixed = (TensorInfo("x", "float32", (4, 3)),)
    with pytest.raises(InputError, match="takes 4 at a time"):
        numbers(open_samples(rows(3), fixed), 4)
    calibration, scoring = open_samples(rows(12), fixed).split()
    assert numbers(calibration, 4) == [[0, 1, 2, 4], [5, 6, 8, 9]]
    with pytest.raises(InputError, match="3 samples are for this part"):
        numbers(scoring, 4)


# --- dtypes and shapes ------------------------------------------------------------------------------------------

DTYPES = [
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "bool",
]


@pytest.mark.parametrize("source", ["archive", "arrays", "batches"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_feeds(tmp_path, dtype, source):
    values = np.random.default_rng(0).integers(0, 2, (COUNT, 3)).astype(dtype)
    data = {
        "archive": lambda: saved(tmp_path, x=values),
        "arrays": lambda: values,
        "batches": lambda: [values],
    }
    samples = open_samples(data[source](), (TensorInfo("x", dtype, ("N", 3)),))
    got = samples.first(COUNT)["x"]
    assert got.dtype == dtype
    assert np.array_equal(got, values)


def test_bfloat16_feeds():
    values = rows().astype(ml_dtypes.bfloat16)
    got = open_samples({"x": values}, (TensorInfo("x", "bfloat16", ("N", 3)),)).first(COUNT)["x"]
    assert got.dtype == ml_dtypes.bfloat16
    assert np.array_equal(got, values)


@pytest.mark.parametrize(
    ("given_as", "wanted"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("int32", "int64"),
        ("int64", "int32"),
        ("uint8", "int64"),
    ],
)
def test_what_loses_nothing_is_converted(given_as, wanted):
    samples = open_samples({"x": rows().astype(given_as)}, (TensorInfo("x", wanted, ("N", 3)),))
    got = samples.first(COUNT)["x"]
    assert got.dtype == wanted
    assert np.array_equal(got, rows())


@pytest.mark.parametrize(
    ("given_as", "wanted"),
    [
        ("uint8", "float32"),
        ("int64", "float32"),
        ("float32", "int64"),
        ("complex64", "float32"),
        ("<U3", "float32"),
    ],
)
def test_what_means_something_else_is_refused(given_as, wanted):
    with pytest.raises(InputError, match="'x' is"):
        open_samples({"x": rows().astype(given_as)}, (TensorInfo("x", wanted, ("N", 3)),)).first()


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_integers_that_do_not_fit_are_refused(value):
    data = np.full((4, 3), value, np.int64)
    with pytest.raises(InputError, match="do not fit int32"):
        open_samples({"x": data}, (TensorInfo("x", "int32", ("N", 3)),)).first()


@pytest.mark.parametrize("shape", [(4,), (4, 3, 1), (4, 2), ()])
def test_another_shape_is_refused(shape):
    with pytest.raises(InputError, match=r"'x' has shape|has no sample axis"):
        open_samples({"x": np.zeros(shape, np.float32)}, ONE).first()


def test_dynamic_axes_take_any_size():
    inputs = (TensorInfo("x", "float32", ("N", "length", 3)),)
    for length in (1, 7):
        data = np.zeros((4, length, 3), np.float32)
        assert open_samples({"x": data}, inputs).first(4)["x"].shape == (4, length, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_with_nan_is_named_by_its_place_in_all_data(bad):
    values = rows()
    values[17, 1] = bad
    samples = open_samples([values[i : i + 5] for i in range(0, COUNT, 5)], ONE)
    with pytest.raises(InputError, match="sample 17 has NaN or Inf in 'x'"):
        joined(samples)


def test_the_users_arrays_are_not_changed():
    data = {"x": rows().astype(np.float64), "labels": np.arange(COUNT)}
    before = {name: (array.dtype, array.copy()) for name, array in data.items()}
    samples = open_samples(data, ONE)
    for part in (samples, *samples.split()):
        joined(part)
    assert list(data) == ["x", "labels"]
    for name, (dtype, array) in before.items():
        assert data[name].dtype == dtype
        assert np.array_equal(data[name], array)


# --- no data ----------------------------------------------------------------------------------------------------


def test_random_samples_fit_the_inputs_and_follow_the_seed():
    inputs = (*TWO, TensorInfo("image", "float16", ("N", 3, "height", 8)), TensorInfo("flag", "bool", ("N",)))
    info = ModelInfo(inputs, (), ())
    first, again, other = (synthetic(info, seed).first(16) for seed in (0, 0, 1))
    assert [first[one.name].dtype.name for one in inputs] == ["int64", "float32", "float16", "bool"]
    assert first["image"].shape[0] == 16
    assert first["image"].shape[1::2] == (3, 8)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["mask"], other["mask"])
    assert (first["ids"] >= 0).all()
