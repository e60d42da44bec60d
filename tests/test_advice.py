"""What is advised, from which facts, for models and CPUs of every kind."""

import json
import re
from pathlib import Path

import pytest

import fewbits as fb
from fewbits import advice, inspection
from fewbits.advice import AIMS, BY_QUALITY
from fewbits.candidates import AUTO, ORIGINAL, Written, drafts, names_and_settings, originals, resolve
from fewbits.engines import openvino_engine
from fewbits.engines.cpu import Cpu
from fewbits.engines.engine import available
from fewbits.models.model import open_model
from tests.tiny import ATTENTION, CONV_BN, EMBEDDING, IF, LOOP, LSTM, RANK_UNKNOWN, Tiny

AVX2 = Cpu("Pretended AVX2", 2, 4, ("sse41", "avx2", "fma"))
VNNI = Cpu("Pretended VNNI", 2, 4, ("sse41", "avx2", "fma", "avx512", "vnni"))
BF16 = Cpu("Pretended bf16", 2, 4, ("sse41", "avx2", "fma", "avx512", "vnni", "avx512_bf16"))
ARM = Cpu("Pretended Arm", 4, 4, ("neon", "fp16", "dotprod"))
PLUGIN = ["FP32", "BF16", "FP16", "INT8"]

ROW = Tiny(
    "g (float[N, 1024] x) => (float[N, 1024] y) { y = MatMul (x, w) }",
    {"w": (1024, 1024)},
    {"x": ((1024,), None)},
)
TOKENS = Tiny(
    """g (float[N, T, 512] x) => (float[N, T, 512] y) {
        a = MatMul (x, w) r = Relu (a) y = MatMul (r, v)
    }""",
    {"w": (512, 512), "v": (512, 512)},
    {"x": ((64, 512), None)},
)
PIXELS = Tiny(
    """g (float[N, 64, 56, 56] x) => (float[N, 64, 56, 56] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (a) y = Conv <pads = [1, 1, 1, 1]> (r, v)
    }""",
    {"w": (64, 64, 3, 3), "v": (64, 64, 3, 3)},
    {"x": ((64, 56, 56), None)},
)
RNN = Tiny(
    """g (float[N, 6, 16] x) => (float[1, N, 32] y) {
        t = Transpose <perm = [1, 0, 2]> (x) all, y = RNN <hidden_size = 32> (t, w, r)
    }""",
    {"w": (1, 32, 16), "r": (1, 32, 32)},
    {"x": ((6, 16), None)},
)
NOTHING = Tiny("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }", {}, {"x": ((4,), None)})


@pytest.fixture
def on(monkeypatch, tmp_path):
    """What is found of a tiny model on a pretended CPU, whose engine has every precision that the CPU has."""

    class Plugin:
        def get_property(self, device, name):
            return PLUGIN

        def read_model(self, path):
            pass

    monkeypatch.setattr(openvino_engine, "_core", Plugin)

    def look(tiny, machine, prefer=None):
        monkeypatch.setattr(inspection, "cpu", lambda: machine)
        return fb.inspect(tiny.save(tmp_path / "m.onnx"), prefer)

    return look


def taken(found, aim):
    (one,) = [one for one in found.advice if one.aim == aim]
    return one


def why(technique):
    return "\n".join(technique.because)


# The facts


def test_multiplications_are_counted(on):
    facts = on(PIXELS, VNNI).facts
    assert facts.multiplications == 2 * 64 * 64 * 9 * 56 * 56
    assert facts.multiplications_by_kind == {"conv": 1.0}
    facts = on(TOKENS, VNNI).facts
    assert facts.multiplications == 2 * 512 * 512 * 128
    assert (facts.rows, facts.open_axes, facts.open_size) == (128, ("T",), 128)
    facts = on(ROW, VNNI).facts
    assert (facts.multiplications, facts.rows) == (1024 * 1024, 1)


def test_of_attention_and_embeddings(on):
    facts = on(ATTENTION, VNNI).facts
    assert set(facts.multiplications_by_kind) == {"linear", "matmul"}
    assert facts.multiplications_by_kind["matmul"] == pytest.approx(2 * 8 * 8 * 32 / facts.multiplications)
    facts = on(EMBEDDING, VNNI).facts
    assert facts.multiplications == 8 * (32 * 64 + 64 * 16)
    assert facts.bytes_by_kind["embedding"] == pytest.approx(4 * 50 * 32 / facts.size_bytes)


def test_of_steps(on):
    facts = on(LSTM, VNNI).facts
    assert facts.multiplications == 6 * (128 * 16 + 128 * 32)
    assert facts.multiplications_by_kind == {"recurrent": 1.0}


def test_of_branches_and_bodies(on):
    assert on(IF, VNNI).facts.multiplications == 2 * (32 * 64 + 64 * 16)
    assert on(LOOP, VNNI).facts.multiplications is None


def test_shares_add_up(on):
    for tiny in (CONV_BN, ATTENTION, EMBEDDING, PIXELS):
        facts = on(tiny, VNNI).facts
        assert sum(facts.multiplications_by_kind.values()) == pytest.approx(1)
        assert sum(facts.bytes_by_kind.values()) < 1


# The advice


def test_an_engine_that_cannot_read_the_file_is_not_advised(tmp_path, command):
    path = RANK_UNKNOWN.save(tmp_path / "m.onnx")
    found = fb.inspect(path)
    assert found.cannot_read["openvino"].startswith("openvino cannot read")
    assert {one.take.engines for one in found.advice} == {("onnxruntime",)}
    assert {name for one in found.could_give for gain in one.gains for name in gain.engines} == {
        "onnxruntime"
    }
    assert "openvino is out: openvino cannot read" in command("inspect", path).out


def test_convolutions_run_on_codes_and_need_data(on):
    speed = taken(on(PIXELS, VNNI), "speed")
    assert (speed.take.recipe, speed.take.needs_data, speed.take.precision) == ("w8a8", True, "f32")
    assert "100.0 % of its 231 million multiplications are in convolutions" in why(speed.take)
    assert "multiplies 8-bit codes by VNNI" in why(speed.take)
    assert "those of convolutions are brought back" in why(speed.take)
    assert speed.without_data is not None
    assert not speed.without_data.needs_data


def test_without_data_the_cpus_bf16(on):
    other = taken(on(PIXELS, BF16), "speed").without_data
    assert (other.engines, other.precision, other.needs_data) == (("openvino",), "bf16", False)
    assert "computes in bf16" in why(other)


def test_many_rows_may_have_their_activations_rounded(on):
    other = taken(on(TOKENS, VNNI), "speed").without_data
    assert (other.engines, other.rounds_activations) == (("openvino",), True)
    assert "whose activations the engine rounds as they come" in why(other)


def test_one_row_reads_packed_weights(on):
    speed = taken(on(ROW, VNNI), "speed").take
    assert not speed.needs_data
    assert not speed.rounds_activations
    assert "whose weights meet one row of a sample: reading them takes the time" in why(speed)


def test_small_models_are_told_to_be_small(on):
    assert "calling them takes much of the time" in why(taken(on(CONV_BN, VNNI), "speed").take)
    assert "calling them" not in why(taken(on(PIXELS, VNNI), "speed").take)


def test_seven_bits_are_told(on):
    speed = taken(on(PIXELS, AVX2), "speed").take
    assert "weights get 7 bits" in why(speed)
    assert "no instructions for products of 8-bit codes" in why(speed)
    assert "7 bits" not in why(taken(on(PIXELS, VNNI), "speed").take)


def test_an_lstm_runs_on_codes_as_they_come(on):
    speed = taken(on(LSTM, VNNI), "speed").take
    assert (speed.recipe, speed.engines) == ("w8a8_dynamic", ("onnxruntime",))
    assert "are in recurrent layers, whose activations are quantized as they come" in why(speed)


def test_what_no_engine_has_on_codes_gains_no_speed(on):
    found = on(RNN, VNNI)
    speed = taken(found, "speed").take
    assert not speed.needs_data
    assert "nothing that is tried makes recurrent layers faster" in why(speed)
    assert "w8a8_dynamic" in {one.recipe for one in found.unsuited}


def test_size_and_quality(on):
    found = on(TOKENS, VNNI)
    assert taken(found, "size").take.recipe == "w4_g128"
    assert "4 bits for linear layers and 8 for the rest" in why(taken(found, "size").take)
    assert taken(found, "quality").take.recipe == "fp16"
    assert taken(on(PIXELS, VNNI), "size").take.recipe == "w8"


def test_weights_that_fp16_does_not_hold(on, tmp_path, monkeypatch):
    import numpy as np
    import onnx
    from onnx import numpy_helper

    proto = TOKENS.proto()
    (weight,) = [one for one in proto.graph.initializer if one.name == "w"]
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] = 1e5
    weight.CopyFrom(numpy_helper.from_array(array.astype(np.float32), "w"))
    onnx.save(proto, tmp_path / "large.onnx")
    quality = taken(fb.inspect(tmp_path / "large.onnx"), "quality").take
    assert quality.recipe == "w8"
    assert "its largest weight is 1e+05, which 16-bit floats do not hold" in why(quality)


def test_a_model_without_weights_stays(on):
    for one in on(NOTHING, VNNI).advice:
        assert one.take.recipe == ORIGINAL
        assert one.without_data is None


def test_what_has_little_to_work_on(on):
    reasons = {one.recipe: one.why for one in on(PIXELS, VNNI).unsuited}
    assert (
        reasons["w8a8_dynamic"]
        == "0.0 % of the multiplications are in what it is for: linear layers and LSTM"
    )
    assert reasons["w4_g128"] == "0.0 % of the file is weights of linear layers"
    assert "does not divide" in {one.recipe: one.why for one in on(ATTENTION, VNNI).unsuited}["w4_g128"]


@pytest.mark.parametrize("machine", [AVX2, VNNI, BF16, ARM], ids=lambda machine: machine.name)
@pytest.mark.parametrize("tiny", [CONV_BN, ATTENTION, EMBEDDING, LSTM, ROW, TOKENS, PIXELS])
def test_only_what_compress_tries_is_advised(on, tmp_path, tiny, machine):
    found = on(tiny, machine)
    model, engines = open_model(tmp_path / "m.onnx"), available("onnx")
    precisions = {name: engine.precisions(machine) for name, engine in engines.items()}
    planned, _ = drafts(resolve("auto", ()), model.info, engines, machine, has_data=True)
    originally = originals(Written(tmp_path, None, None), precisions, 1)
    tried = {(ORIGINAL, one.settings.engine, one.settings.precision, False) for one in originally}
    for draft in planned:
        for one in names_and_settings(draft, planned, precisions, 1).values():
            tried.add((draft.recipe.name, one.engine, one.precision, bool(one.activation_group_size)))
    assert [one.aim for one in found.advice] == list(AIMS)
    for one in found.advice:
        for technique in filter(None, (one.take, one.without_data)):
            assert technique.because
            for engine in technique.engines:
                key = (technique.recipe, engine, technique.precision, technique.rounds_activations)
                assert key in tried
        if one.without_data is not None:
            assert one.take.needs_data
            assert not one.without_data.needs_data


# How it is told


def test_one_aim_only(on):
    assert [one.aim for one in on(PIXELS, VNNI, "size").advice] == ["size"]


def test_in_the_terminal(command, tmp_path):
    path = TOKENS.save(tmp_path / "m.onnx")
    answer = command("inspect", path)
    assert answer.code == 0
    for aim in AIMS:
        assert re.search(rf"^{aim} ", answer.out, re.MULTILINE)
    only = command("inspect", path, "--prefer", "size").out
    assert not re.search(r"^speed ", only, re.MULTILINE)
    found = json.loads(command("inspect", path, "--json").out)
    assert [one["aim"] for one in found["advice"]] == list(AIMS)
    assert found["facts"]["multiplications"] == 2 * 512 * 512 * 128


def test_an_aim_that_does_not_exist(refused, tmp_path):
    path = TOKENS.save(tmp_path / "m.onnx")
    assert refused("inspect", path, "--prefer", "beauty") == (
        "fewbits: prefer is 'beauty'; allowed are speed, size, quality"
    )


def test_every_preset_of_auto_has_its_place():
    assert sorted(BY_QUALITY) == sorted(AUTO)
    guide = (Path(__file__).parents[1] / "docs" / "choosing.md").read_text()
    for name in AUTO:
        assert f"`{name}`" in guide
    for word in (str(advice.FEW_ROWS), f"{advice.LEAST_PER_OPERATOR:,}", f"{advice.LARGEST_FP16:,.0f}"):
        assert word in guide
