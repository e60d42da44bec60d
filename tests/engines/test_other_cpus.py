"""Files for CPUs that this machine is not: the tables, the arithmetic behind them, an engine held to AVX2."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import numpy_helper

import fewbits as fb
from fewbits.candidates import drafts, names_and_settings, resolve
from fewbits.engines import openvino_engine
from fewbits.engines.cpu import Cpu, cpu
from fewbits.engines.engine import available, get
from fewbits.engines.onnxruntime_engine import literal_session
from fewbits.engines.targets import TARGETS, targets
from fewbits.models.model import open_model
from fewbits.planning.target import SAFE_CODE
from tests.stages import stages
from tests.tiny import ATTENTION, CONV_BN, EMBEDDING, Tiny

SSE41 = Cpu("Pretended SSE4.1", 2, 2, ("sse41",))
AVX2 = Cpu("Pretended AVX2", 2, 4, ("sse41", "avx2", "fma"))
AVX512 = Cpu("Pretended AVX-512 without VNNI", 2, 4, ("sse41", "avx2", "fma", "avx512"))
VNNI = Cpu("Pretended AVX-VNNI", 2, 4, ("sse41", "avx2", "fma", "vnni"))
AMX = Cpu(
    "Pretended AMX",
    2,
    4,
    ("sse41", "avx2", "fma", "avx512", "vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
)
CORTEX_A72 = Cpu("Pretended Arm v8.0", 4, 4, ("neon",))
NEOVERSE_N1 = Cpu("Pretended Arm v8.2", 4, 4, ("neon", "fp16", "dotprod"))
NEOVERSE_V2 = Cpu("Pretended Arm v9", 4, 4, ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve"))
ARM = (CORTEX_A72, NEOVERSE_N1, NEOVERSE_V2)

LONG_SUMS = Tiny(
    "g (float[N, 8, 128] x) => (float[N, 8, 64] y) { y = MatMul (x, w) }",
    {"w": (128, 64)},
    {"x": ((8, 128), None)},
)

names = pytest.mark.parametrize


# The arithmetic


def added_in_pairs(activations, weights):
    """What x86 computes without VNNI: products of two neighbours, added in 16 bits that stop at their ends."""
    products = activations.astype(np.int64) * weights.astype(np.int64)
    pairs = products[..., ::2] + products[..., 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=-1)


def codes(dtype, low, high):
    return arrays(dtype, (3, 64), elements=st.integers(low, high))


@given(codes(np.uint8, 0, 255), codes(np.int8, -SAFE_CODE, SAFE_CODE))
def test_no_pair_of_products_overflows(activations, weights):
    exact = (activations.astype(np.int64) * weights.astype(np.int64)).sum(axis=-1)
    np.testing.assert_array_equal(added_in_pairs(activations, weights), exact)


@names("code", [SAFE_CODE, -SAFE_CODE, SAFE_CODE + 1, -SAFE_CODE - 1])
def test_the_largest_code_that_is_safe_is_the_largest(code):
    activations, weights = np.full(64, 255, np.uint8), np.full(64, code, np.int8)
    exact = int((activations.astype(np.int64) * weights).sum())
    assert (added_in_pairs(activations, weights) == exact) == (abs(code) <= SAFE_CODE)


# The tables


@names("machine", [SSE41, AVX2, AVX512], ids=lambda machine: machine.name)
@names("engine", ["onnxruntime", "openvino"])
def test_x86_without_dot_products_saturates(engine, machine):
    found = targets(engine, machine)
    assert [target.placement for target in found] == [target.placement for target in TARGETS[engine]]
    assert all(target.saturates and not target.rounds_activations for target in found)


@names("machine", [VNNI, AMX], ids=lambda machine: machine.name)
@names("engine", TARGETS)
def test_nothing_needs_amx(engine, machine):
    assert targets(engine, machine) == TARGETS[engine]


@names("machine", ARM, ids=lambda machine: machine.name)
def test_nothing_saturates_on_arm(machine):
    assert targets("onnxruntime", machine) == TARGETS["onnxruntime"]
    (target,) = targets("openvino", machine)
    # Its int8 convolutions are those whose result is quantized; weights are not multiplied packed.
    assert (target.placement, target.quantize_outputs) == ("everywhere", True)
    assert not (target.saturates or target.rounds_activations or target.keeps_packed)


def test_litert_widens_codes_everywhere():
    for machine in (SSE41, AVX2, VNNI, NEOVERSE_N1):
        assert targets("litert", machine) == TARGETS["litert"]


@names(
    ("machine", "capabilities", "offered"),
    [
        (AVX2, ["FP32", "INT8"], ("f32",)),
        (VNNI, ["FP32", "INT8"], ("f32",)),
        (AMX, ["FP32", "BF16", "INT8"], ("f32", "bf16")),
        (CORTEX_A72, ["FP32", "INT8"], ("f32",)),
        (NEOVERSE_N1, ["FP32", "FP16", "INT8"], ("f32", "f16")),
        (NEOVERSE_V2, ["FP32", "FP16", "INT8"], ("f32", "f16")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_openvino_offers_what_cpu_and_plugin_have(monkeypatch, machine, capabilities, offered):
    plugin = SimpleNamespace(get_property=lambda device, name: capabilities)
    monkeypatch.setattr(openvino_engine, "_core", lambda: plugin)
    assert get("openvino").precisions(machine) == offered
    assert get("onnxruntime").precisions(machine) == ("f32",)


# What is tried


@names(
    ("machine", "roundings", "placements"),
    [(VNNI, True, 2), (AVX2, False, 2), (NEOVERSE_N1, False, 1)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_auto_tries_what_the_cpu_gains_by(tmp_path, machine, roundings, placements):
    model = open_model(CONV_BN.save(tmp_path / "conv.onnx"))
    engines = {name: available()[name] for name in ("onnxruntime", "openvino")}
    planned, _ = drafts(resolve("auto", ()), model.info, engines, machine, has_data=True)
    static = [draft for draft in planned if draft.recipe.name == "w8a8"]
    assert sum(draft.target.engine == "openvino" for draft in static) == placements
    assert any(draft.target.engine == "onnxruntime" for draft in static)
    linear = open_model(ATTENTION.save(tmp_path / "attention.onnx"))
    planned, _ = drafts(resolve("w8", ()), linear.info, engines, machine, has_data=False)
    precisions = dict.fromkeys(engines, ("f32",))
    ways = [names_and_settings(draft, planned, precisions, 1) for draft in planned]
    assert any(one.activation_group_size for names in ways for one in names.values()) == roundings


def largest_codes(path):
    """Of the tensors of int8 codes in a file, by their rank and name."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    found = {name: array for name, array in stored.items() if array.dtype == np.int8 and array.ndim > 1}
    return {name: int(np.abs(array.astype(int)).max()) for name, array in found.items()}


@names("engine", ["onnxruntime", "openvino"])
@names(
    ("recipe", "largest"),
    [("w8a8", SAFE_CODE), ("w8a8_minmax", SAFE_CODE), ("w8a8_dynamic", SAFE_CODE), ("w8", 127)],
)
def test_weights_that_meet_codes_stay_safe(write, engine, recipe, largest):
    for target in targets(engine, AVX2):
        if recipe != "w8a8_dynamic" or target.dynamic_int8:
            found = largest_codes(write(ATTENTION, recipe, target))
            assert len(found) == 4
            assert set(found.values()) == {largest}


def test_a_table_that_is_looked_up_keeps_its_eight_bits(write):
    (target,) = targets("onnxruntime", AVX2)
    found = largest_codes(write(EMBEDDING, "w8a8", target))
    assert sorted(found.values()) == [SAFE_CODE, SAFE_CODE, 127]


# An engine without VNNI

HELD_TO_AVX2 = """
import json, sys
import numpy as np
from fewbits.engines.engine import EngineSettings, get
paths, feeds = sys.argv[2:], dict(np.load(sys.argv[1]))
for number, path in enumerate(paths):
    session = get("openvino").compile(path, EngineSettings("openvino", "f32", 1))
    np.savez(f"{path}.npz", **session.run(feeds))
"""


@pytest.mark.skipif("avx2" not in cpu().isa, reason="not an x86 CPU")
def test_openvino_without_vnni_computes_what_is_written_for_it_and_nothing_else(write, tmp_path):
    feeds = LONG_SUMS.samples(16)
    np.savez(tmp_path / "feeds.npz", **feeds)
    safe, full = (write(LONG_SUMS, "w8a8", targets("openvino", machine)[0]) for machine in (AVX2, VNNI))
    subprocess.run(
        [sys.executable, "-c", HELD_TO_AVX2, str(tmp_path / "feeds.npz"), str(safe), str(full)],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        check=True,
    )
    kept = {}
    for path in (safe, full):
        exact, computed = literal_session(path, 1).run(feeds)["y"], np.load(f"{path}.npz")["y"]
        kept[path] = 10 * np.log10((exact**2).sum() / ((exact - computed) ** 2).sum())
    assert kept[safe] > 100
    assert kept[full] < 40


# From end to end


def test_compressing_on_a_cpu_with_avx2_only(monkeypatch, short_measuring, tmp_path):
    monkeypatch.setattr(stages, "cpu", lambda: AVX2)
    path, data = CONV_BN.save(tmp_path / "m.onnx"), CONV_BN.samples(32)
    result = fb.compress(path, data, recipe="w8a8", max_drop="100%", prefer="size", out=tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["machine"]["isa"] == list(AVX2.isa)
    assert max(largest_codes(result.folder / "m.onnx").values()) == SAFE_CODE
    assert {one["precision"] for one in report["candidates"]} == {"f32"}
