import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from fewbits.engines.cpu import Cpu, cpu
from fewbits.engines.engine import EngineSettings, available, get, literal_session
from fewbits.engines.onnxruntime_engine import simplify
from fewbits.errors import EngineError, InputError
from tests.engines.models import TWO_INPUTS, UNKNOWN_OPERATOR, dense, save_text, weight_only

ENGINES = ["onnxruntime", "openvino"]
AVX2_ONLY = Cpu("Pretended AVX2", 2, 4, ("avx2", "fma"))
SAPPHIRE = Cpu("Pretended AMX", 2, 4, ("avx2", "avx512", "vnni", "avx512_bf16", "amx_int8", "amx_bf16"))


def f32(engine, threads=1):
    return EngineSettings(engine, "f32", threads)


def two_inputs(rows):
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((rows, 4)).astype(np.float32),
        "row": rng.integers(0, rows, rows),
    }


def sqnr_db(reference, received):
    return 10 * np.log10((reference**2).sum() / ((received - reference) ** 2).sum())


BACK_AND_FORTH = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4, 3] x) => (float[N, 4, 3] y)
{
    same = Cast<to = 1>(x)
    turned = Transpose<perm = [0, 2, 1]>(same)
    half = Relu(turned)
    y = Transpose<perm = [0, 2, 1]>(half)
}
"""


def test_what_a_file_does_for_nothing_is_taken_out_of_it(tmp_path):
    path = save_text(BACK_AND_FORTH, tmp_path / "net.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)}
    before = literal_session(path, 1).run(feeds)
    simplify(path)
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    assert [one.domain for one in model.opset_import] == [""]
    assert list(tmp_path.iterdir()) == [path]
    assert np.array_equal(before["y"], literal_session(path, 1).run(feeds)["y"])
    with pytest.raises(EngineError, match="onnxruntime cannot simplify"):
        simplify(save_text(UNKNOWN_OPERATOR, tmp_path / "unknown.onnx"))


def test_both_engines_are_here_and_know_their_version():
    engines = available()
    assert list(engines) == ENGINES
    for name, engine in engines.items():
        assert engine.name == name
        assert engine.version[0].isdigit()


def test_asking_what_is_here_imports_no_runtime():
    script = (
        "import sys; from fewbits.engines.engine import available; available();"
        "print([m for m in ('onnxruntime', 'openvino', 'onnx', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_engine_lists_what_is_here():
    with pytest.raises(InputError, match="'tensorrt' is unknown; installed: onnxruntime, openvino"):
        get("tensorrt")


def test_missing_engine_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"installed: onnxruntime.*pip install openvino"):
        get("openvino")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8'; allowed are f32, bf16, f16"),
        ({"threads": 0}, "threads is 0"),
        ({"activation_group_size": 48}, "activation_group_size is 48; allowed are 0, 32, 64, 128"),
    ],
)
def test_settings_refuse_what_is_not_allowed(wrong, message):
    with pytest.raises(InputError, match=message):
        EngineSettings(**({"engine": "openvino", "precision": "f32", "threads": 1} | wrong))


@pytest.mark.parametrize("engine", ENGINES)
def test_names_and_order_are_the_files_own(engine, tmp_path):
    session = get(engine).compile(save_text(TWO_INPUTS, tmp_path / "m.onnx"), f32(engine))
    assert session.input_names == ("x", "row")
    assert session.output_names == ("same", "sum", "again", "back")
    for rows in (2, 5):  # the open axis stays open
        feeds = two_inputs(rows)
        outputs = session.run(feeds)
        half = np.maximum(feeds["x"], 0)
        assert list(outputs) == ["same", "sum", "again", "back"]
        np.testing.assert_array_equal(outputs["same"], half)
        np.testing.assert_array_equal(outputs["sum"], feeds["x"][feeds["row"]] + half)
        np.testing.assert_array_equal(outputs["again"], half)
        np.testing.assert_array_equal(outputs["back"], feeds["x"])


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_survive_the_next_run(engine, tmp_path):
    session = get(engine).compile(dense(tmp_path / "m.onnx"), f32(engine))
    first = session.run({"x": np.ones((1, 64), np.float32)})["y"]
    kept = first.copy()
    session.run({"x": np.full((1, 64), -3, np.float32)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("engine", ENGINES)
def test_feeds_need_not_be_contiguous(engine, tmp_path):
    session = get(engine).compile(dense(tmp_path / "m.onnx"), f32(engine))
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    expected = session.run({"x": np.ascontiguousarray(x.T)})["y"]
    np.testing.assert_array_equal(session.run({"x": x.T})["y"], expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda feeds: feeds.pop("row"), "has the inputs x, row; received x"),
        (lambda feeds: feeds.update(rows=feeds.pop("row")), "has the inputs x, row; received x, rows"),
        (lambda feeds: feeds.update(row=feeds["row"].astype(np.int32)), "'row' takes int64, received int32"),
    ],
)
def test_wrong_feeds_are_refused(engine, change, message, tmp_path):
    session = get(engine).compile(save_text(TWO_INPUTS, tmp_path / "m.onnx"), f32(engine))
    feeds = two_inputs(2)
    change(feeds)
    with pytest.raises(InputError, match=message):
        session.run(feeds)


@pytest.mark.parametrize("engine", ENGINES)
def test_static_shapes_compute_the_same(engine, tmp_path):
    path = dense(tmp_path / "m.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
    open_shapes = get(engine).compile(path, f32(engine)).run(feeds)["y"]
    static = get(engine).compile(path, f32(engine), {"x": (3, 64)}).run(feeds)["y"]
    np.testing.assert_allclose(static, open_shapes, rtol=1e-5, atol=1e-6)


def test_openvino_holds_to_its_static_shape(tmp_path):
    session = get("openvino").compile(dense(tmp_path / "m.onnx"), f32("openvino"), {"x": (3, 64)})
    with pytest.raises(EngineError, match=r"openvino cannot run .*m\.onnx: .*shape=\[3,64\]"):
        session.run({"x": np.zeros((2, 64), np.float32)})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shape_for_no_input_is_refused(engine, tmp_path):
    path = dense(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="has the inputs x; received a shape for z"):
        get(engine).compile(path, f32(engine), {"z": (1, 64)})


@pytest.mark.parametrize("engine", ENGINES)
def test_failures_are_one_line_with_engine_and_file(engine, tmp_path):
    whole = dense(tmp_path / "whole.onnx").read_bytes()
    files = {
        "truncated.onnx": whole[: len(whole) // 2],
        "random.onnx": np.random.default_rng(0).bytes(500),
        "empty.onnx": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    save_text(UNKNOWN_OPERATOR, tmp_path / "unknown.onnx")
    for name in (*files, "unknown.onnx"):
        with pytest.raises(EngineError) as caught:
            get(engine).compile(tmp_path / name, f32(engine))
        message = str(caught.value)
        assert message.startswith((f"{engine} cannot read", f"{engine} cannot compile"))
        assert name in message
        assert "\n" not in message
        assert len(message) < 600
    with pytest.raises(InputError, match=r"no such file: .*nowhere\.onnx"):
        get(engine).compile(tmp_path / "nowhere.onnx", f32(engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_failing_runs_are_engine_errors(engine, tmp_path):
    session = get(engine).compile(dense(tmp_path / "m.onnx"), f32(engine))
    with pytest.raises(EngineError, match=rf"{engine} cannot run .*m\.onnx"):
        session.run({"x": np.zeros((2, 63), np.float32)})


def test_precisions_follow_the_cpu():
    assert get("onnxruntime").precisions(SAPPHIRE) == ("f32",)
    assert get("openvino").precisions(AVX2_ONLY) == ("f32",)
    offered = get("openvino").precisions(SAPPHIRE)
    # The engine knows the true CPU and has its say as well.
    assert offered == (("f32", "bf16") if "avx512_bf16" in cpu().isa else ("f32",))


def test_a_precision_that_would_be_replaced_silently_is_an_error(tmp_path):
    path = dense(tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="onnxruntime has no precision 'bf16'"):
        get("onnxruntime").compile(path, EngineSettings("onnxruntime", "bf16", 1))
    lacking = [p for p in ("bf16", "f16") if p not in get("openvino").precisions(cpu())]
    for precision in lacking:
        with pytest.raises(EngineError, match=f"on this CPU, not in {precision}"):
            get("openvino").compile(path, EngineSettings("openvino", precision, 1))


def test_bf16_computes_in_bf16(tmp_path):
    if "bf16" not in get("openvino").precisions(cpu()):
        pytest.skip("this CPU has no bf16")
    path = dense(tmp_path / "m.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
    exact, rounded = (
        get("openvino")
        .compile(path, EngineSettings("openvino", precision, 1), {"x": (3, 64)})
        .run(feeds)["y"]
        for precision in ("f32", "bf16")
    )
    assert 35 < sqnr_db(exact, rounded) < 65  # 8 bits of mantissa, about 48 dB; f32 against f32 is over 100


@pytest.mark.parametrize("engine", ENGINES)
def test_activations_of_weight_only_layers_stay_float_unless_told_otherwise(engine, tmp_path):
    path, weights = weight_only(tmp_path / "m.onnx")
    x = np.random.default_rng(1).standard_normal((16, 128)).astype(np.float32)
    for group_size, lowest, highest in ((0, 110, 200), (32, 35, 60)):
        settings = EngineSettings(engine, "f32", 1, activation_group_size=group_size)
        y = get(engine).compile(path, settings, {"x": x.shape}).run({"x": x})["y"]
        assert lowest < sqnr_db(x @ weights, y) < highest


@pytest.mark.parametrize("shapes", [None, {"x": (3, 128)}])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_snippet_runs_the_file_as_the_engine_does(engine, shapes, tmp_path):
    path, _ = weight_only(tmp_path / "it's a model.onnx")
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32)}
    for precision in get(engine).precisions(cpu()):
        for group_size in (0, 32):
            settings = EngineSettings(engine, precision, 1, group_size)
            snippet = settings.snippet(path, shapes)
            assert "fewbits" not in snippet.replace(str(path), "")
            assert len(snippet.splitlines()) <= 6
            scope = {"feeds": feeds}
            exec(snippet, scope)
            expected = get(engine).compile(path, settings, shapes).run(feeds)["y"]
            np.testing.assert_array_equal(scope["outputs"][0], expected)


def test_nothing_is_written_into_the_home_directory(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    dense(tmp_path / "m.onnx")
    script = (
        "from fewbits.engines.engine import *\n"
        f"for e in available(): get(e).compile({str(tmp_path / 'm.onnx')!r}, EngineSettings(e, 'f32', 1))"
    )
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = clean | {"HOME": str(home), "XDG_CACHE_HOME": str(home), "CI": ""}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert list(home.rglob("*")) == []


def test_telemetry_package_stays_importable(tmp_path):
    get("openvino").prepare()
    assert sys.modules.get("openvino_telemetry", "absent") is not None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_installation_says_so(engine, tmp_path):
    (tmp_path / engine).mkdir()
    (tmp_path / engine / "__init__.py").write_text("raise ImportError('libfoo.so: not found')")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from fewbits.engines.engine import *\n"
        f"try: get({engine!r}).prepare()\n"
        "except EngineError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{engine} is installed but cannot be imported: libfoo.so: not found\n"
