import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

import fewbits as fb
from fewbits import cli
from fewbits.comparison import compare
from fewbits.errors import InputError
from fewbits.remeasure import measure
from fewbits.report.record import Report

SIZE, CLASSES, SAMPLES = 128, 10, 40
ROUNDS = 2


def network(path, delta=0.0, name="x", classes=CLASSES, second="Relu", dtype=np.float32):
    """x [N, SIZE] -> logits [N, classes], and hidden [N, SIZE], to whose values ``delta`` is added."""
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.standard_normal((SIZE, SIZE)).astype(dtype) / SIZE**0.5, "w1"),
        numpy_helper.from_array(rng.standard_normal((SIZE, classes)).astype(dtype) / SIZE**0.5, "w2"),
        numpy_helper.from_array(np.full(1, delta, dtype), "delta"),
    ]
    nodes = [
        helper.make_node("MatMul", [name, "w1"], ["m"]),
        helper.make_node(second, ["m"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["logits"]),
        helper.make_node("Add", ["r", "delta"], ["hidden"]),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ports = {
        key: helper.make_tensor_value_info(key, kind, ["N", size])
        for key, size in ((name, SIZE), ("logits", classes), ("hidden", SIZE))
    }
    graph = helper.make_graph(nodes, "g", [ports[name]], [ports["logits"], ports["hidden"]], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(path, **more):
    x = np.random.default_rng(1).standard_normal((SAMPLES, SIZE)).astype(np.float32)
    np.savez(path, x=x, **more)
    return path


def shown(found) -> str:
    out = io.StringIO()
    found.show(Console(file=out, width=100, color_system=None))
    assert max(map(len, out.getvalue().splitlines())) <= 100
    return out.getvalue()


def check_json(found):
    text = found.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert type(found).model_validate_json(text) == found


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A folder with the original, its data, and what compress made of it (on one thread)."""
    folder = tmp_path_factory.mktemp("compressed")
    path, data = network(folder / "m.onnx"), samples(folder / "data.npz")
    fb.compress(
        path,
        data,
        recipe="w8",
        engine="onnxruntime",
        prefer="size",
        max_drop=100,
        threads=1,
        out=folder / "out",
    )
    return folder


def test_two_files_that_differ_by_a_known_amount(tmp_path):
    a, b = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx", delta=0.25)
    found = compare(a, b, samples(tmp_path / "data.npz"), threads=1, rounds=ROUNDS)
    logits, hidden = found.outputs
    assert (logits.name, logits.elements, logits.not_finite) == ("logits", SAMPLES * CLASSES, 0)
    assert logits.max_difference == pytest.approx(
        0, abs=1e-5
    )  # the fastest engines of the two may be different ones
    assert hidden.mean_difference == pytest.approx(0.25, rel=1e-4)
    assert hidden.max_difference == pytest.approx(0.25, rel=1e-4)
    assert found.agreement.top1 == 1.0
    assert found.agreement.cosine_min < 0.999
    assert found.samples == SAMPLES
    for side in (found.a, found.b):
        tried = (side.timing, *side.others)
        assert sorted(one.engine for one in tried) == ["onnxruntime", "openvino"]
        assert {one.precision for one in tried} == {"f32"}
        assert side.timing.latency_ms.p50 == min(one.latency_ms.p50 for one in tried)
    assert found.speedup.low <= found.speedup.value <= found.speedup.high
    assert found.size_ratio == b.stat().st_size / a.stat().st_size
    check_json(found)
    text = shown(found)
    assert "hidden" in text
    assert "B has 100.0 % of A's bytes" in text


def test_a_file_with_itself_is_the_same(tmp_path):
    a = network(tmp_path / "a.onnx")
    found = compare(a, a, samples(tmp_path / "data.npz"), engine="onnxruntime", threads=1, rounds=ROUNDS)
    assert (found.speedup.value, found.speedup.tie) == (1.0, True)
    assert found.agreement.sqnr_db is None
    assert [one.max_difference for one in found.outputs] == [0.0, 0.0]
    assert found.a.others == ()
    assert "B is as fast as A, within 3 %" in shown(found)


def test_values_that_are_not_finite_are_counted_apart(tmp_path):
    """The square root of negative values is NaN, where the rectifier gives zero."""
    a, b = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx", second="Sqrt")
    found = compare(a, b, samples(tmp_path / "data.npz"), engine="onnxruntime", threads=1, rounds=ROUNDS)
    logits, hidden = found.outputs
    assert logits.not_finite == SAMPLES * CLASSES
    assert logits.max_difference is None
    assert 0.4 < hidden.not_finite / hidden.elements < 0.6
    check_json(found)
    shown(found)


def test_labels_score_both(tmp_path):
    a, b = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx", second="Tanh")
    data = samples(tmp_path / "data.npz")
    x = np.load(data)["x"]
    w1, w2 = (numpy_helper.to_array(one) for one in onnx.load(a).graph.initializer[:2])
    right = (np.maximum(x @ w1, 0) @ w2).argmax(axis=1)
    found = compare(a, b, samples(data, labels=right), engine="onnxruntime", threads=1, rounds=ROUNDS)
    assert found.metric == "top1"
    assert found.a.score == 100.0
    assert found.b.score == pytest.approx(100 * found.agreement.top1)
    assert found.b.score < 100.0


def test_a_folder_runs_as_it_was_saved(compressed):
    found = compare(compressed / "m.onnx", compressed / "out", compressed / "data.npz", rounds=ROUNDS)
    assert found.a.timing.threads == found.b.timing.threads == 1
    assert (found.b.timing.engine, found.b.others) == ("onnxruntime", ())
    assert found.b.file == str(compressed / "out" / "m.onnx")
    assert found.size_ratio < 0.5
    assert found.agreement.sqnr_db > 25


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "z"}, r"inputs differ: x float32\[N, 128\] in the first, z float32\[N, 128\]"),
        ({"dtype": np.float64}, r"inputs differ: .* float64\[N, 128\]"),
        ({"classes": 7}, r"outputs differ: logits float32\[N, 10\], .* logits float32\[N, 7\]"),
    ],
)
def test_models_that_differ_at_their_borders_are_refused(tmp_path, change, what):
    a, b = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx", **change)
    with pytest.raises(InputError, match=what) as caught:
        compare(a, b, samples(tmp_path / "data.npz"), threads=1)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_refused(tmp_path):
    a = network(tmp_path / "a.onnx")
    data = samples(tmp_path / "data.npz")
    with pytest.raises(InputError, match="no such file"):
        compare(a, tmp_path / "b.onnx", data)
    with pytest.raises(InputError, match="fewbits compress wrote"):
        compare(a, tmp_path, data)
    with pytest.raises(InputError, match="no such file"):
        compare(a, a, tmp_path / "missing.npz")
    with pytest.raises(InputError, match="unknown"):
        compare(a, a, data, engine="abacus")


def test_a_folder_measured_again_beside_its_original(compressed):
    found = measure(compressed / "out", rounds=ROUNDS)
    report = Report.from_json((compressed / "out" / "report.json").read_bytes())
    assert found.candidate == report.saved
    assert found.unchanged
    assert found.then.latency_ms == report.shown.latency_ms
    assert found.times_then == pytest.approx(found.then.latency_ms.p50 / found.now.latency_ms.p50)
    assert (found.now.engine, found.now.threads) == ("onnxruntime", 1)
    assert found.original_missing is None
    assert found.original_now.precision == "f32"
    assert found.speedup_now.low <= found.speedup_now.value <= found.speedup_now.high
    assert found.speedup_then.value == report.shown.speedup
    assert found.machine_now.cpu == found.machine_then.cpu
    assert found.latency_at == f"x 1x{SIZE}, 1 thread"
    check_json(found)
    assert "as fast as when it was measured" in shown(found)


def test_a_folder_alone_or_changed_says_so(compressed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a longer path could not be broken into lines
    folder = Path("elsewhere")
    shutil.copytree(compressed / "out", folder)
    network(tmp_path / "m.onnx", delta=1.0)  # has the original's name, and other bytes
    with (folder / "m.onnx").open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(
            content.replace(b"fewbits", b"FEWBITS") if b"fewbits" in content else content + b"\x12\x00"
        )
    found = measure(folder, threads=2, rounds=ROUNDS)
    assert (found.now.threads, found.then.threads) == (2, 1)
    assert not found.unchanged
    assert (found.original_now, found.speedup_now) == (None, None)
    assert "m.onnx, as it was, lies neither beside" in found.original_missing
    text = shown(found)
    assert "its bytes have changed" in text
    assert "was not measured" in text


def test_an_original_that_was_handed_over_is_its_own_original(tmp_path):
    path = network(tmp_path / "m.onnx")
    out = tmp_path / "far" / "out"
    out.parent.mkdir()
    fb.compress(
        path, samples(tmp_path / "data.npz"), recipe="original", engine="onnxruntime", threads=1, out=out
    )
    found = measure(out, rounds=ROUNDS)
    assert found.original_missing is None
    assert found.original_now.latency_ms.p50 > 0


def test_a_folder_that_fewbits_did_not_write_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no report\.json in it"):
        measure(tmp_path)


def test_the_commands_print_json_and_nothing_else_there(compressed, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fewbits", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, capsys.readouterr().out

    assert json.loads(run("inspect", compressed / "m.onnx", "--json")[1])["opset"] == 17
    original, data = compressed / "m.onnx", compressed / "data.npz"
    code, out = run("compare", original, original, "--data", data, "--engine", "onnxruntime", "--json")
    assert (code, json.loads(out)["samples"]) == (0, SAMPLES)
    assert run("bits", "-1.5")[0] == 0
    assert run("bits", "one")[0] == 2


def test_public_names_stay_functions_when_submodules_are_imported():
    """``fewbits.compress`` and ``fewbits.measure`` are modules too; importing one must not hide the function."""
    import importlib

    for module in ("fewbits.compress", "fewbits.measure.latency"):
        importlib.import_module(module)
    assert fb.measure is measure
    assert fb.compare is compare
    assert all(callable(getattr(fb, name)) for name in ("compress", "inspect", "load", "measure"))
