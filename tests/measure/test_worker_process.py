import os
import time

import numpy as np
import psutil
import pytest

from fewbits.engines.engine import EngineSettings
from fewbits.measure.latency import CallableContestant, Contestant
from fewbits.measure.worker_process import WorkerFailure, WorkerProcess
from tests.engines.models import dense

WAIT_S = 60  # for what must come, on a machine that is busy with other things


def prepared(worker, contestant, feeds_file=None):
    worker.send(contestant.preparation(feeds_file))
    assert worker.receive(WAIT_S) == {}
    return worker


def loaded(worker, contestant, feeds_file=None):
    prepared(worker, contestant, feeds_file).send({"do": "load"})
    worker.receive(WAIT_S)
    return worker


def peer(factory, **kwargs):
    return CallableContestant("peer", f"tests.measure.peers:{factory}", kwargs)


def block(worker, seconds=0.01, timeout_s=WAIT_S):
    worker.send({"do": "block", "seconds": seconds})
    return worker.receive(timeout_s)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_idle_worker_uses_no_cpu(engine, tmp_path):
    path = dense(tmp_path / "m.onnx", rows=256, size=512)  # large enough to be shared between threads
    np.savez(tmp_path / "feeds.npz", x=np.zeros((256, 512), np.float32))
    contestant = Contestant("model", path, EngineSettings(engine, "f32", 2))
    with WorkerProcess() as worker:
        loaded(worker, contestant, tmp_path / "feeds.npz")
        process = psutil.Process(worker.pid)
        for _ in range(2):
            assert len(block(worker, 0.05)["times_ns"]) > 1
            before = sum(process.cpu_times()[:2])
            time.sleep(0.3)
            assert sum(process.cpu_times()[:2]) - before <= 0.03  # spinning threads would take 0.3 and more


def refusal(factory):
    """What a worker's failure to load says; nothing where it loads."""
    with WorkerProcess() as worker:
        try:
            loaded(worker, peer(factory))
        except WorkerFailure as failure:
            return str(failure)
    return ""


def test_a_worker_that_cannot_rest_is_refused():
    # Where others work too it may have to wait for a moment itself, which looks like rest.
    said: list[str] = []
    while len(said) < 5 and not (said and "of a core is busy 2 s after the last run" in said[-1]):
        said.append(refusal("never_idle"))
    assert "of a core is busy 2 s after the last run" in said[-1], said


def test_what_a_contestant_prints_does_not_mix_with_answers():
    with WorkerProcess() as worker:
        loaded(worker, peer("talking"))
        assert block(worker)["times_ns"]


def test_a_block_runs_at_least_once_and_about_as_long_as_asked():
    with WorkerProcess() as worker:
        loaded(worker, peer("sleeping", seconds=0.02))
        assert len(block(worker, 0.001)["times_ns"]) == 1
        times = block(worker, 0.1)["times_ns"]
        assert 1 <= len(times) <= 5
        assert min(times) >= 0.02e9


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_crash_names_the_signal():
    with WorkerProcess() as worker:
        prepared(worker, peer("segfaulting")).send({"do": "load"})
        with pytest.raises(WorkerFailure, match=r"its process crashed \(SIGSEGV\)"):
            worker.receive(WAIT_S)


def test_an_exit_names_the_code_and_the_last_words():
    with WorkerProcess() as worker:
        prepared(worker, peer("exiting")).send({"do": "load"})
        with pytest.raises(WorkerFailure, match="its process ended with exit code 3: why it left"):
            worker.receive(WAIT_S)


def test_an_exception_is_one_line():
    with WorkerProcess() as worker:
        prepared(worker, peer("raising")).send({"do": "load"})
        with pytest.raises(WorkerFailure, match=r"^ValueError: told over two lines$"):
            worker.receive(WAIT_S)


def test_a_hang_ends_at_the_time_limit():
    with WorkerProcess() as worker:
        loaded(worker, peer("hanging_after", runs=15))
        with pytest.raises(WorkerFailure, match=r"no answer within 0\.5 s"):
            block(worker, 60, timeout_s=0.5)
    assert not psutil.pid_exists(worker.pid)


def test_modules_are_found_as_in_this_process(tmp_path, monkeypatch):
    (tmp_path / "my_peer.py").write_text("def make(): return lambda: None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with WorkerProcess() as worker:
        assert block(loaded(worker, CallableContestant("peer", "my_peer:make")))["times_ns"]


def test_files_in_the_working_directory_do_not_pass_for_libraries(tmp_path, monkeypatch):
    (tmp_path / "psutil.py").write_text("raise RuntimeError('not the library')\n")
    monkeypatch.chdir(tmp_path)
    with WorkerProcess() as worker:
        loaded(worker, peer("sleeping", seconds=0))


def test_killing_twice_and_talking_to_the_dead_is_harmless():
    with WorkerProcess() as worker:
        worker.kill()
        worker.kill()
