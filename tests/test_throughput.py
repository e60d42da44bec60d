"""``--batch``: samples per second of every candidate, and what cannot be run in batches."""

import json

import numpy as np
import psutil
import pytest

import fewbits as fb
from fewbits.errors import InputError
from fewbits.planning.model_info import TensorInfo
from fewbits.samples import open_samples
from fewbits.throughput import parse_batches
from tests.test_sequences import STEPS
from tests.tiny import Tiny, linear

ONE_OR_FOUR = Tiny(
    """g (float[N, 64] x) => (float[M, 10] y) {
        m = MatMul (x, w1)
        r = Add (m, rows)
        y = MatMul (r, w2)
    }""",
    {"w1": (64, 64), "rows": (4, 64), "w2": (64, 10)},
    {"x": ((64,), None)},
)


@pytest.mark.parametrize(
    ("written", "sizes"),
    [
        (None, ()),
        (8, (8,)),
        ("8", (8,)),
        ("1,8,32", (1, 8, 32)),
        (" 32, 8 ,1", (32, 8, 1)),
        ("8,8,1", (8, 1)),
        ((1, 8), (1, 8)),
        (np.array([1, 8]), (1, 8)),
    ],
)
def test_batches_as_written(written, sizes):
    assert parse_batches(written) == sizes


@pytest.mark.parametrize(
    "written", ["", "a", "1,", "1,,8", "0", "-1", "1.5", "8;9", 0, -2, 1.5, (1, 2.5), (), [0], True, ["x"]]
)
def test_what_is_no_list_of_batches(written):
    with pytest.raises(InputError, match=r"batch is .*; give whole numbers of 1 or more, such as 1,8,32"):
        parse_batches(written)


@pytest.mark.parametrize("written", ["none", "1,,8", "0", "1e3"])
def test_it_is_refused_on_the_command_line(refused, place, written):
    linear().save(place / "model.onnx")
    assert "give whole numbers" in refused("compress", "model.onnx", "--recipe", "w8", "--batch", written)


def test_a_batch_that_does_not_fit_into_memory(refused, place):
    linear().save(place / "model.onnx")
    too_many = psutil.virtual_memory().total // (4 * 64) + 1
    line = refused("compress", "model.onnx", "--recipe", "w8", "--batch", f"1,{too_many}")
    assert f"batch {too_many}: its inputs alone take" in line


def test_samples_per_second_of_every_candidate(command, short_measuring, place):
    linear().save(place / "model.onnx")
    np.savez(place / "data.npz", **linear().samples(12))
    given = (
        "--data",
        "data.npz",
        "--engine",
        "onnxruntime",
        "--recipe",
        "w8",
        "--threads",
        1,
        "--max-drop",
        "100%",
        "--batch",
        "16,1,4",
    )
    answer = command("compress", "model.onnx", *given, "--out", "out")
    assert answer.code == 0, answer.err
    report = json.loads((place / "out" / "report.json").read_text())
    assert len(report["candidates"]) == 2
    for one in report["candidates"]:
        assert [part["batch"] for part in one["throughput"]] == [16, 1, 4]
        for part in one["throughput"]:
            assert part["samples_per_s"] == pytest.approx(1000 * part["batch"] / part["p50_ms"])
            assert part["error"] is None
        assert one["throughput"][1]["p50_ms"] == one["latency_ms"]["p50"]  # not measured again
        assert one["load_ms"] > 0
        assert one["resident_bytes"] is not None
    assert "samples per second" in answer.out
    assert "batch 16" in answer.out
    assert "Samples per second" in (place / "out" / "report.html").read_text(encoding="utf-8")
    assert report["timings_s"]["throughput"] > 0


def test_a_model_that_takes_one_number_of_samples_says_so(place, short_measuring):
    tiny = linear(batch=4)
    found = fb.compress(
        tiny.save(place / "model.onnx"),
        tiny.samples(16),
        recipe="w8",
        engine="onnxruntime",
        batch=(1, 4, 8),
        threads=1,
    )
    assert "no throughput at batch 1 and 8: the model takes exactly 4 samples at a time" in found.report.notes
    for one in found.report.candidates:
        (part,) = one.throughput
        assert part.batch == 4
        assert part.samples_per_s == pytest.approx(4000 / one.latency_ms.p50)


def test_steps_of_a_sequence_are_no_batch(place, short_measuring):
    found = fb.compress(
        STEPS.save(place / "model.onnx"),
        eval={"x": np.zeros((12, 16), np.float32), "rate": np.array(8000)},
        state={"stateN": "state"},
        recipe="w8",
        engine="onnxruntime",
        batch=(1, 8),
        threads=1,
    )
    assert "no throughput at batch 8: samples are steps of a sequence, one at a time" in found.report.notes
    assert all([part.batch for part in one.throughput] == [1] for one in found.report.candidates)


def test_a_size_that_an_engine_cannot_run_leaves_the_others(place, short_measuring):
    """The batch axis is open, and a constant inside the model allows 1 and 4 all the same."""
    path = ONE_OR_FOUR.save(place / "model.onnx")
    found = fb.compress(
        path,
        eval={"x": ONE_OR_FOUR.samples(4)["x"]},
        recipe="w8",
        engine="onnxruntime",
        prefer="size",
        batch=(4, 8),
        threads=1,
    )
    assert found.report.shown.recipe == "w8"
    for one in found.report.candidates:
        four, eight = one.throughput
        assert four.samples_per_s > 0
        assert eight.samples_per_s is eight.p50_ms is None
        assert "onnxruntime cannot run" in eight.error
    page = (found.folder / "report.html").read_text(encoding="utf-8")
    assert "cannot run</small>" in page


def test_fewer_samples_than_a_batch_are_in_it_several_times():
    samples = open_samples(np.arange(3, dtype=np.float32)[:, None], (TensorInfo("x", "float32", ("N", 1)),))
    assert samples.filled(7)["x"][:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert samples.filled(2)["x"][:, 0].tolist() == [0, 1]
