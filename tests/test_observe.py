"""Observing: in memory that does not grow with the data, the same every time, whatever the batch size."""

import tracemalloc

import numpy as np
import pytest

from fewbits.engines.engine import EngineSettings, get
from fewbits.errors import InputError
from fewbits.models.model import open_model
from fewbits.observe import observe
from fewbits.samples import open_samples
from tests.stages import sqnr_db, write_files
from tests.tiny import CONV_BN, MATMUL_ADD, MODELS, Tiny

EXACT = Tiny(
    """g (float[N, 16, 32] x) => (float[N, 16, 32] y) {
        r = Relu (x)
        n = Neg (r)
        y = MatMul (n, w)
    }""",
    {"w": (32, 32)},
    {"x": ((16, 32), None)},
)
"""Its first operators give the same bits whatever goes with a sample."""


def session_of(folder, tiny, tensors):
    model = open_model(tiny.save(folder / "model.onnx"))
    model.tapped(tensors, folder / "tapped.onnx")
    return get("onnxruntime").compile(folder / "tapped.onnx", EngineSettings("onnxruntime", "f32", 1)), model


class Drawn:
    """Samples made as they are asked for, in batches of eight; nothing holds them."""

    def __init__(self, tiny, count):
        self.tiny, self.count = tiny, count

    def __iter__(self):
        return (self.tiny.samples(8, seed) for seed in range(self.count // 8))


def watched(folder, tiny, tensors, rows, samples, data, batch=None, progress=lambda done: None):
    session, model = session_of(folder, tiny, tensors)
    stream = open_samples(data, model.info.inputs)
    return observe(session, stream, tensors, rows, samples, batch, progress)


def kept_bytes(stats):
    arrays = [
        array
        for one in stats.tensors.values()
        for array in (one.histogram.counts, one.examples, one.channel_low, one.channel_high)
        if array is not None
    ]
    return sum(array.nbytes for array in arrays)


# --- what is found ----------------------------------------------------------------------------------------------


def test_extremes_are_those_of_the_float_model(tmp_path):
    data = MATMUL_ADD.samples(40)
    stats = watched(tmp_path, MATMUL_ADD, ["x", "r"], ["x", "r"], [], data)
    x = data["x"]
    assert stats.samples == 40
    assert (stats["x"].histogram.minimum, stats["x"].histogram.maximum) == (x.min(), x.max())
    assert stats["x"].histogram.counts.sum() == x.size
    np.testing.assert_array_equal(stats["x"].channel_low, x.min(axis=(0, 1)))
    np.testing.assert_array_equal(stats["x"].channel_high, x.max(axis=(0, 1)))
    session, _ = session_of(tmp_path, MATMUL_ADD, ["r"])
    r = session.run(data)["r"]
    assert stats["r"].histogram.maximum == pytest.approx(r.max(), rel=1e-6)
    np.testing.assert_allclose(stats["r"].channel_high, r.max(axis=(0, 1)), rtol=1e-6)


def test_examples_are_rows_and_whole_samples_of_what_was_seen(tmp_path):
    data = MATMUL_ADD.samples(40)
    x = watched(tmp_path, MATMUL_ADD, ["x"], ["x"], [], data)["x"]
    all_rows = {row.tobytes() for row in data["x"].reshape(-1, 32)}
    assert x.examples.shape[1:] == (32,)
    assert {row.tobytes() for row in x.examples} <= all_rows
    images = CONV_BN.samples(40)
    seen = watched(tmp_path, CONV_BN, ["image"], [], ["image"], images)["image"]
    np.testing.assert_array_equal(seen.examples, images["image"])
    assert seen.channel_low is None


def test_few_samples_are_all_kept(tmp_path):
    data = MATMUL_ADD.samples(3)
    stats = watched(tmp_path, MATMUL_ADD, ["x"], ["x"], [], data)
    np.testing.assert_array_equal(stats["x"].examples, data["x"].reshape(-1, 32))


def test_examples_come_from_all_over_the_data(tmp_path):
    """Every sample holds its own number: beginning, middle and end are there, in about equal parts."""
    count = 4096
    data = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None], (count, 16, 32)).copy()
    examples = watched(tmp_path, EXACT, ["x"], ["x"], [], data)["x"].examples
    parts = np.bincount((examples[:, 0] * 8 / count).astype(int), minlength=8)
    assert parts.min() > 0.8 * parts.max()


def test_examples_do_not_fall_in_step_with_the_places_of_a_sequence(tmp_path):
    """Every row holds its place: a first token, which may be a hundred times larger, is one of sixteen."""
    places = np.broadcast_to(np.arange(16, dtype=np.float32)[None, :, None], (2048, 16, 32)).copy()
    examples = watched(tmp_path, EXACT, ["x"], ["x"], [], places)["x"].examples
    share = np.bincount(examples[:, 0].astype(int), minlength=16) / len(examples)
    assert share.min() > 0.5 / 16
    assert share.max() < 2 / 16


# --- memory -----------------------------------------------------------------------------------------------------


def test_memory_is_flat(tmp_path):
    tensors = ["x", "a", "r"]
    session, model = session_of(tmp_path, MATMUL_ADD, tensors)
    peaks, kept = {}, {}
    for count in (512, 4096):
        stream = open_samples(Drawn(MATMUL_ADD, count), model.info.inputs)
        tracemalloc.start()
        stats = observe(session, stream, tensors, ["x", "r"], ["x"], None)
        _, peaks[count] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert stats.samples == count
        kept[count] = kept_bytes(stats)
    assert peaks[4096] < 1.2 * peaks[512]
    assert kept[4096] < 1.2 * kept[512]


def test_large_samples_are_kept_within_a_bound(tmp_path):
    """Each is a megabyte; with 8 of them and with 64 the same few are kept."""
    wide = Tiny(
        "g (float[N, 4, 256, 256] x) => (float[N, 4, 256, 256] y) { y = Conv (x, w) }",
        {"w": (4, 4, 1, 1)},
        {"x": ((4, 256, 256), None)},
    )
    few, many = (watched(tmp_path, wide, ["x"], [], ["x"], Drawn(wide, count)) for count in (16, 64))
    assert many["x"].examples.nbytes <= few["x"].examples.nbytes <= 8 << 20
    assert many["x"].histogram.counts.sum() < 64 * 4 * 256 * 256  # a regular part is counted, not all


# --- the same every time ----------------------------------------------------------------------------------------


def same(one, other):
    for name in one.tensors:
        a, b = one[name], other[name]
        assert (a.histogram.minimum, a.histogram.maximum) == (b.histogram.minimum, b.histogram.maximum)
        for x, y in (
            (a.examples, b.examples),
            (a.channel_low, b.channel_low),
            (a.channel_high, b.channel_high),
        ):
            assert (x is None) == (y is None)
            assert x is None or np.array_equal(x, y)


def test_the_same_every_time(tmp_path):
    runs = [
        watched(tmp_path, MATMUL_ADD, ["x", "r"], ["x", "r"], [], MATMUL_ADD.samples(100)) for _ in range(2)
    ]
    same(*runs)
    for name in ("x", "r"):
        assert runs[0][name].histogram.counts.tobytes() == runs[1][name].histogram.counts.tobytes()
        assert runs[0][name].histogram.low == runs[1][name].histogram.low


@pytest.mark.parametrize("batch", [1, 3, 8, 32])
def test_the_same_whatever_the_batch_size(tmp_path, batch):
    rng = np.random.default_rng(0)
    growing = np.exp2(np.linspace(-3, 6, 700))[:, None, None]  # ranges grow as samples come
    data = (rng.standard_normal((700, 16, 32)) * growing).astype(np.float32)
    whole = watched(tmp_path, EXACT, ["x", "n"], ["x", "n"], ["n"], data, 100)
    part = watched(tmp_path, EXACT, ["x", "n"], ["x", "n"], ["n"], data, batch)
    same(whole, part)
    for name in ("x", "n"):
        one, other = whole[name].histogram, part[name].histogram
        assert one.counts.sum() == other.counts.sum() == data.size
        width = (one.high - one.low) / len(one.counts)
        assert abs(one.low - other.low) <= width
        shift = round((other.low - one.low) / width)
        sums = np.zeros((2, max(len(one.counts), len(other.counts)) + 2))
        sums[0, max(-shift, 0) :][: len(one.counts)] = one.counts
        sums[1, max(shift, 0) :][: len(other.counts)] = other.counts
        moved = np.abs(np.diff(np.cumsum(sums, axis=1), axis=0)).max()
        assert moved < 1e-3 * data.size  # values near zero lie at the border of two bins


def test_a_fixed_batch_is_kept_to(tmp_path):
    tiny = MODELS["fixed_batch"]
    done = []
    stats = watched(tmp_path, tiny, ["x", "r"], ["x"], [], tiny.samples(18), 4, done.append)
    assert stats.samples == 16
    assert done == [4, 8, 12, 16]


def test_data_without_samples_is_refused(tmp_path):
    with pytest.raises(InputError, match="no samples"):
        watched(tmp_path, EXACT, ["x"], [], [], [])


NOT_FINITE = Tiny(
    """g (float[N, 32] x) => (float[N, 10] y) {
        r = Relu (x)
        l = Log (r)
        a = MatMul (l, w1)
        b = Clip (a, low, high)
        c = MatMul (x, w2)
        y = Add (b, c)
    }""",
    {"w2": (32, 10)},
    {"x": ((32,), None)},
    {
        "low": np.float32(-1),
        "high": np.float32(1),
        "w1": np.linspace(0.1, 1, 320, dtype=np.float32).reshape(32, 10),
    },
)
"""Half of what its first product reads is minus infinity; its output is finite."""


def test_a_layer_whose_input_is_not_finite_stays_in_float(tmp_path):
    path = NOT_FINITE.save(tmp_path / "model.onnx")
    samples = NOT_FINITE.samples(16)
    files = write_files(path, samples, "w8a8", tmp_path)
    expected = files.float_outputs(samples)
    assert files.candidates
    for one in files.candidates:
        reasons = [layer.float_reason for layer in one.file.plan.layers]
        assert "infinite" in reasons[0]
        assert reasons[1] is None
        assert sqnr_db(expected, files.session(one).run(samples)) > 25
