import math
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from fewbits.engines.engine import EngineSettings
from fewbits.errors import InputError
from fewbits.measure.latency import CallableContestant, Contestant, Latency, Ratio, measure_latency, ratio
from tests.engines.models import dense
from tests.interrupting import heed

FEEDS = {"x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}
ORT = EngineSettings("onnxruntime", "f32", 2)
OPENVINO = EngineSettings("openvino", "f32", 2)


def peer(name, factory, **kwargs):
    return CallableContestant(name, f"tests.measure.peers:{factory}", kwargs)


def rounds_of(name, *round_ms):
    return Latency(name, p50_ms=float(np.median(round_ms)), round_ms=round_ms, runs=len(round_ms))


def test_the_failing_do_not_stop_the_others(tmp_path):
    model = dense(tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(model.read_bytes()[:-100])
    contestants = [
        Contestant("broken", tmp_path / "broken.onnx", OPENVINO),
        Contestant("ort", model, ORT),
        peer("crash", "segfaulting"),
        Contestant("refused", model, EngineSettings("onnxruntime", "bf16", 2)),
        peer("hang", "hanging_after", runs=3),
        Contestant("missing", tmp_path / "missing.onnx", ORT),
        Contestant("openvino", model, OPENVINO),
        peer("peer", "sleeping", seconds=0.001),
    ]
    steps = []
    results = measure_latency(
        contestants,
        FEEDS,
        rounds=2,
        block_seconds=0.02,
        timeout_s=8,
        progress=lambda *step: steps.append(step),
    )
    assert [result.name for result in results] == [contestant.name for contestant in contestants]
    by_name = {result.name: result for result in results}
    assert by_name["broken"].error.startswith("openvino cannot read")
    assert "SIGSEGV" in by_name["crash"].error
    assert by_name["refused"].error.startswith("onnxruntime has no precision 'bf16'")
    assert by_name["hang"].error == "no answer within 8 s"
    assert by_name["missing"].error.startswith("no such file")
    for name in ("ort", "openvino", "peer"):
        good = by_name[name]
        assert good.error is None
        assert len(good.round_ms) == 2
        assert good.runs >= 2
        assert 0 < good.p10_ms <= good.p90_ms
        assert good.p50_ms == np.median(good.round_ms)
        assert good.load_ms > 0
    assert by_name["openvino"].resident_bytes > 64 * 64 * 4
    assert by_name["peer"].p10_ms >= 1
    for name in ("broken", "crash"):
        assert math.isnan(by_name[name].p50_ms)
    done, total = [step[0] for step in steps], {step[1] for step in steps}
    assert done == sorted(done)
    assert total == {done[-1]}


def test_the_same_bytes_and_settings_are_measured_once(tmp_path):
    first, copy, other = (dense(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    contestants = [
        Contestant("first", first, ORT),
        Contestant("copy", copy, ORT),
        Contestant("other bytes", other, ORT),
        Contestant("other settings", first, EngineSettings("onnxruntime", "f32", 1)),
    ]
    first, copy, *others = measure_latency(contestants, FEEDS, rounds=2, block_seconds=0.01)
    assert (first.name, copy.name) == ("first", "copy")
    assert copy.round_ms == first.round_ms  # nanoseconds of two measurements would not agree
    assert all(other.round_ms != first.round_ms for other in others)


def test_equal_contestants_tie():
    contestants = [peer("a", "sleeping", seconds=0.004), peer("b", "sleeping", seconds=0.004)]
    a, b = measure_latency(contestants, {}, rounds=6, block_seconds=0.05)
    speedup = ratio(a, b)
    assert speedup.tie or speedup.low <= 1 <= speedup.high


def test_twice_the_work_is_half_the_speed():
    contestants = [peer("slow", "sleeping", seconds=0.02), peer("fast", "sleeping", seconds=0.004)]
    slow, fast = measure_latency(contestants, {}, rounds=4, block_seconds=0.05)
    assert ratio(slow, fast).value > 1.5
    assert ratio(fast, slow).value < 0.7


def test_ratio_pairs_rounds():
    # The machine slows down threefold half way; within each round b takes half of a's time.
    a, b = rounds_of("a", 2.0, 2.02, 1.98, 6.0, 6.06, 5.94), rounds_of("b", 1.0, 1.0, 1.0, 3.0, 3.0, 3.0)
    speedup = ratio(a, b)
    assert speedup.value == pytest.approx(2.0)
    assert 1.97 < speedup.low <= speedup.value <= speedup.high < 2.03
    assert ratio(b, a).value == pytest.approx(0.5)
    assert ratio(a, b, seed=3) == ratio(a, b, seed=3)


def test_ratio_interval_grows_with_disagreement():
    steady, noisy = rounds_of("steady", *[1.0] * 6), rounds_of("noisy", 1.0, 2.0, 0.5, 1.5, 0.7, 1.2)
    speedup = ratio(noisy, steady)
    assert speedup.low < 1 < speedup.high


def test_ties():
    for value in (0.972, 1.0, 1.029):
        assert Ratio(value, value, value).tie
    for value in (0.96, 1.04):
        assert not Ratio(value, value, value).tie


def test_ratio_refuses_what_failed():
    good = rounds_of("good", 1.0, 1.0)
    with pytest.raises(InputError, match="bad has no speedup, because it failed: it is broken"):
        ratio(good, Latency("bad", error="it is broken"))


def test_further_rounds_of_one_have_no_pair():
    assert ratio(rounds_of("more", 2.0, 2.0, 9.0, 9.0), rounds_of("fewer", 1.0, 1.0)).value == 2.0


def test_what_is_close_gets_further_rounds(tmp_path):
    found = measure_latency(
        [
            peer("slow", "sleeping", seconds=0.012),
            peer("a", "sleeping", seconds=0.004),
            peer("b", "sleeping", seconds=0.004),
            peer("named", "sleeping", seconds=0.02),
        ],
        {},
        rounds=2,
        block_seconds=0.01,
        close=1.5,
        beside=["named"],
    )
    assert [len(one.round_ms) for one in found] == [2, 4, 4, 4]
    alone = measure_latency(
        [peer("slow", "sleeping", seconds=0.02), peer("a", "sleeping", seconds=0.004)],
        {},
        rounds=2,
        block_seconds=0.01,
        close=1.5,
        beside=["slow"],
    )
    assert [len(one.round_ms) for one in alone] == [2, 2]


def test_wrong_arguments(tmp_path):
    twice = [peer("a", "sleeping", seconds=0), peer("a", "sleeping", seconds=0)]
    with pytest.raises(InputError, match="names of their own; repeated: a"):
        measure_latency(twice, {})
    with pytest.raises(InputError, match="rounds is 0"):
        measure_latency(twice[:1], {}, rounds=0)


def test_nothing_to_measure():
    assert measure_latency([], {}) == []


SCRIPT = """
from fewbits.measure.latency import CallableContestant, measure_latency
sleeping = [CallableContestant(n, "tests.measure.peers:sleeping", {"seconds": 0.001}) for n in "ab"]
measure_latency(sleeping, {}, rounds=10000, progress=lambda *step: print(*step, flush=True))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_measurement(how):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        preexec_fn=heed,
    ) as measuring:
        for line in measuring.stdout:
            if int(line.split()[0]) > 4:  # well into its rounds
                break
        workers = psutil.Process(measuring.pid).children(recursive=True)
        assert len(workers) == 2
        measuring.send_signal(how)
        measuring.wait(30)
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
