"""A run that ends early, by its time budget or by Ctrl-C: what was tried is kept, and the rest is listed."""

import functools
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

import fewbits as fb
from fewbits.candidates import PROMISING, drafts, in_order, resolve
from fewbits.ending import Ending, NothingMore, parse_budget, temporary_folder
from fewbits.engines.cpu import cpu
from fewbits.engines.engine import available
from fewbits.errors import InputError
from fewbits.estimate import ALONE_S, RANDOM_SAMPLES, UNKNOWN_SAMPLES, Pace, estimate, sample_count
from fewbits.measure.latency import ENOUGH_ROUNDS, CallableContestant, measure_latency
from fewbits.models.model import open_model
from fewbits.planning.recipe import PRESETS, ResolvedRecipe, write_recipe
from fewbits.report.record import Report
from tests.interrupting import heed
from tests.tiny import CONV_BN, linear

ORT = {"engine": "onnxruntime", "threads": 1, "max_drop": "100%"}
ARTIFACTS = {"model.onnx", "report.html", "report.json", "recipe.toml", "run.py"}


# --- times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (None, None),
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("1h", 3600),
        ("1h30m", 5400),
        (" 1.5 H ", 5400),
        ("2m 30s", 150),
        (45, 45),
        (0.5, 0.5),
    ],
)
def test_budgets_as_written(written, seconds):
    assert parse_budget(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        "",
        "10",
        "ten minutes",
        "10 minutes",
        "-5s",
        "0s",
        "10x",
        "5m!",
        "s",
        0,
        -1,
        float("nan"),
        float("inf"),
        True,
    ],
)
def test_what_is_no_budget(written):
    with pytest.raises(
        InputError, match=r"time_budget is .*; give a time with its unit, such as 90s, 10m or"
    ):
        parse_budget(written)


@pytest.mark.parametrize("written", ["10", "-5s", "soon"])
def test_it_is_refused_on_the_command_line(refused, place, written):
    linear().save(place / "model.onnx")
    assert "such as 90s" in refused("compress", "model.onnx", f"--time-budget={written}")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_nothing_new_is_begun_when_what_is_left_is_needed_to_finish():
    clock = Clock()
    ending = Ending(60.0, clock=clock)
    ending.check()
    ending.reserved_s = 40.0
    clock.now += 19
    ending.check()
    clock.now += 2
    with pytest.raises(NothingMore):
        ending.check()
    assert not ending.early  # nothing was left out yet
    with ending.keeping(lambda: False):
        ending.check()
    assert ending.time_over and ending.early and not ending.interrupted
    Ending(clock=clock).check()  # without a budget there is always time


def interrupt():
    raise KeyboardInterrupt


def test_the_first_ctrl_c_is_kept_where_there_is_something_to_keep():
    said = []
    ending = Ending(say=said.append)
    with pytest.raises(KeyboardInterrupt), ending.keeping(lambda: False):
        interrupt()
    assert not ending.interrupted
    with ending.keeping(lambda: True):
        interrupt()
    assert ending.interrupted and not ending.time_over
    assert len(said) == 1 and "Ctrl-C again stops at once" in said[0]
    with pytest.raises(NothingMore):
        ending.check()
    with pytest.raises(KeyboardInterrupt), ending.keeping(lambda: True):
        interrupt()


def test_what_must_be_finished_is_begun_again_once():
    ending = Ending()
    results = iter([KeyboardInterrupt, "done", KeyboardInterrupt])

    def step():
        result = next(results)
        if result is KeyboardInterrupt:
            raise KeyboardInterrupt
        return result

    assert ending.finishing(step) == "done"
    with pytest.raises(KeyboardInterrupt):
        ending.finishing(step)
    with pytest.raises(KeyboardInterrupt):
        Ending().finishing(interrupt, lambda: False)


# --- the order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", ["speed", "size", "quality"])
def test_the_most_promising_come_first(tmp_path, prefer):
    info = open_model(CONV_BN.save(tmp_path / "model.onnx")).info
    planned, _ = drafts(resolve("auto", ()), info, available(), cpu(), True)
    names = [one.recipe.name for one in in_order(planned, prefer, data_last=False)]
    assert len(names) == len(planned)
    assert list(dict.fromkeys(names)) == [name for name in PROMISING[prefer] if name in names]
    last = in_order(planned, prefer, data_last=True)
    with_data = [one.recipe.uses_data for one in last]
    assert with_data == sorted(with_data) and True in with_data and False in with_data


# --- the estimate -----------------------------------------------------------------------------------------------


def test_samples_are_counted_without_being_read(tmp_path):
    x = np.zeros((40, 3), np.float32)
    np.savez(tmp_path / "d.npz", x=x, scalar=np.float32(1))
    np.savez_compressed(tmp_path / "c.npz", x=x)
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    for data in (
        tmp_path / "d.npz",
        str(tmp_path / "c.npz"),
        x,
        torch.from_numpy(x),
        {"x": x, "labels": np.zeros(40), "rate": np.array(8000)},
        [x[:10], x[10:]],
        DataLoader(TensorDataset(torch.from_numpy(x)), batch_size=7),
    ):
        assert sample_count(data) == 40
    assert sample_count(None) == RANDOM_SAMPLES
    (tmp_path / "bad.npz").write_bytes(b"hello")
    for data in (tmp_path / "none.npz", tmp_path / "bad.npz", range(3), object()):
        assert sample_count(data) == UNKNOWN_SAMPLES


def test_what_recipes_do_beside_rounding_is_counted(tmp_path):
    info = open_model(CONV_BN.save(tmp_path / "model.onnx")).info
    assert info.links

    def of(name, data=100, learned=0, **switches):
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(write_recipe(ResolvedRecipe(replace(PRESETS[name], **switches))), encoding="utf-8")
        planned, _ = drafts(resolve(str(recipe), ()), info, available(), cpu(), data > 0)
        return estimate(Pace(0.1, 0.01), info, planned, 4, 0, data, 50, learned)

    plain = of("w4a8", learn=False, correct=False, equalize=False)
    corrected = of("w4a8", learn=False, equalize=False)
    assert corrected.total_s == pytest.approx(plain.total_s + corrected.correct_s)
    assert corrected.correct_s > corrected.write_s + 100 * 0.01  # decided once more, and run
    assert of("w4a8", equalize=False).total_s == corrected.total_s  # effort fast
    learned = of("w4a8", learned=1000, equalize=False)
    assert learned.total_s == pytest.approx(plain.total_s + learned.learn_s)
    equalized = of("w4a8", learn=False, correct=False)
    assert equalized.total_s == pytest.approx(plain.total_s + plain.calibrate_s)  # observed twice
    assert plain.alone_s == pytest.approx(
        0.1 + 2 * (ALONE_S + 0.1 + plain.score_s)
    )  # the original, and two layers alone
    without = of("w4", data=0)
    assert without.total_s == pytest.approx(of("w4", data=0, correct=False, learn=False).total_s)


# --- a time budget ----------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return linear().save(tmp_path / "model.onnx")


def test_the_estimate_is_said_first_and_all_is_tried_where_there_is_time(path, short_measuring, tmp_path):
    events = []
    found = fb.compress(
        path,
        linear().samples(64),
        time_budget="1h",
        out=tmp_path / "out",
        say=lambda line: events.append(line),
        progress=lambda stage, done, total: events.append((stage,)),
        **ORT,
    )
    lines = [one for one in events if isinstance(one, str)]
    assert len(lines) == 1
    assert re.fullmatch(r"about [\d.]+ (s|min [\d.]+ s) for \d+ candidates, of 60 min 00 s left", lines[0])
    assert {stage for (stage,) in (one for one in events[: events.index(lines[0])])} == {"load"}
    report = found.report
    assert (report.time_budget_s, report.interrupted, report.not_tried) == (3600, False, ())
    assert 0 < report.estimated_s < 600
    assert int(re.search(r"(\d+) candidates", lines[0])[1]) == len(report.candidates)
    assert not any("ended early" in note for note in report.notes)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    clock = Clock()
    module = importlib.import_module("fewbits.compress")
    monkeypatch.setattr(module, "Ending", functools.partial(Ending, clock=clock))
    return clock


def test_when_the_time_is_over_nothing_new_is_begun(path, short_measuring, tmp_path, clock):
    """It is over while the second file is being written: what was begun is finished and chosen from."""

    def progress(stage, done, total):
        if stage == "write" and done == 1:
            clock.now += 10_000

    found = fb.compress(
        path, linear().samples(64), time_budget="1h", out=tmp_path / "out", progress=progress, **ORT
    )
    report = Report.from_json((tmp_path / "out" / "report.json").read_text())
    assert report == found.report
    tried = {one.recipe for one in report.candidates}
    assert tried == {"original", "w8a8"}
    names = [one.name for one in report.not_tried]
    assert {one.why for one in report.not_tried} == {"the time was over"}
    assert {name.split()[0] for name in names} == {"w8", "w8a8_dynamic", "fp16"}
    assert not report.interrupted
    assert found.met
    (note,) = [note for note in report.notes if "ended early" in note]
    assert note.startswith(
        f"ended early: the time was over; {len(report.candidates)} candidates were tried, and"
    )
    assert {one.name for one in (tmp_path / "out").iterdir()} == ARTIFACTS
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in names)
    assert note in str(found).replace("\n", " ")


def test_where_calibrating_takes_too_long_what_needs_it_comes_last(
    path, short_measuring, tmp_path, clock, monkeypatch
):
    module = importlib.import_module("fewbits.compress")
    monkeypatch.setattr(module, "sample_count", lambda data: 10**9)
    said = []
    found = fb.compress(
        path, linear().samples(64), time_budget="5m", out=tmp_path / "out", say=said.append, **ORT
    )
    assert "calibrating alone takes about" in said[0]
    assert said[0].endswith("what needs it comes last")
    recipes = list(dict.fromkeys(one.recipe for one in found.report.candidates))
    assert recipes == ["original", "w8", "w8a8_dynamic", "fp16", "w8a8"]
    plain = fb.compress(path, recipe="w8", out=tmp_path / "plain", **ORT)
    sha256 = {one.name: one.sha256 for one in plain.report.candidates}
    assert found.report.candidate("w8 ort f32").sha256 == sha256["w8 ort f32"]  # rounded without data
    assert any("weights are rounded without data" in note for note in found.report.notes)


def test_calibrating_is_cut_short_too(path, short_measuring, tmp_path, clock):
    def progress(stage, done, total):
        if stage == "observe" and done:
            clock.now += 10_000

    found = fb.compress(
        path, linear().samples(400), time_budget="1h", out=tmp_path / "out", progress=progress, **ORT
    )
    assert {one.recipe for one in found.report.candidates} == {"original"}
    assert found.report.verdict.startswith(
        "Nothing but the original was tried: run the original file in onnx"
    )
    assert found.met
    assert len(found.report.not_tried) > 3


# --- Ctrl-C, in this process ------------------------------------------------------------------------------------


def counted(at):
    """Scores of 1, and a Ctrl-C in place of the score number ``at``."""
    calls = []

    def evaluate(model):
        calls.append(model)
        if len(calls) == at:
            raise KeyboardInterrupt
        return 1.0

    return evaluate


def interrupted(path, out, **more):
    with pytest.raises(fb.Interrupted) as stopped:
        fb.compress(path, linear().samples(64), out=out, **(ORT | more))
    return stopped.value.result


def test_ctrl_c_while_trying_keeps_what_was_tried(path, short_measuring, place):
    said = []
    found = interrupted(path, place / "out", evaluate=counted(3), say=said.append)
    assert said[0].startswith("about ")
    assert len(said) == 2
    report = Report.from_json((place / "out" / "report.json").read_text())
    assert report == found.report
    assert report.interrupted
    assert [one.recipe for one in report.candidates] == ["original", "w8a8"]
    assert all(one.latency_ms.p50 for one in report.candidates)
    assert {one.why for one in report.not_tried} == {"interrupted"}
    assert any(note.startswith("ended early: interrupted; 2 candidates were tried") for note in report.notes)
    assert {one.name for one in (place / "out").iterdir()} == ARTIFACTS
    assert found.model(linear().samples(2)["x"]).shape == (2, 10)
    assert list((place.parent / "temporary").iterdir()) == []


def test_it_is_a_ctrl_c_for_whoever_does_not_care(path, short_measuring, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fb.compress(path, linear().samples(64), out=tmp_path / "out", evaluate=counted(3), **ORT)


@pytest.mark.parametrize("at", [1, 2])
def test_before_anything_was_tried_nothing_is_written(path, short_measuring, place, at):
    """The first score is the original's; the second would have been the first candidate's."""
    with pytest.raises(KeyboardInterrupt) as stopped:
        fb.compress(path, linear().samples(64), out=place / "out", evaluate=counted(at), **ORT)
    assert not isinstance(stopped.value, fb.Interrupted)
    assert list(place.iterdir()) == []
    assert list((place.parent / "temporary").iterdir()) == []


@pytest.mark.parametrize("where", ["measure_latency", "describe", "Checker"])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_finishing(path, short_measuring, place, monkeypatch, where, times):
    """The first lets it finish; the second stops it, with nothing written."""
    module = importlib.import_module("fewbits.compress")
    real = getattr(module, where)
    if where == "Checker":
        real = module.Checker.difference
    count = []

    def fails(*arguments, **more):
        count.append(1)
        if len(count) <= times:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    if where == "Checker":
        monkeypatch.setattr(module.Checker, "difference", fails)
    else:
        monkeypatch.setattr(module, where, fails)
    if times == 1:
        found = interrupted(path, place / "out", recipe="w8")
        assert found.report.interrupted
        assert found.report.not_tried == ()
        assert any("every candidate had been tried" in note for note in found.report.notes)
        assert all(one.error is None and one.latency_ms.p50 for one in found.report.candidates)
        assert {one.name for one in (place / "out").iterdir()} == ARTIFACTS
    else:
        with pytest.raises(KeyboardInterrupt) as stopped:
            fb.compress(path, linear().samples(64), recipe="w8", out=place / "out", **ORT)
        assert not isinstance(stopped.value, fb.Interrupted)
        assert list(place.iterdir()) == []
    assert list((place.parent / "temporary").iterdir()) == []


def test_throughput_that_was_not_measured_is_said(path, short_measuring, tmp_path, monkeypatch):
    module = importlib.import_module("fewbits.throughput")
    real, calls = module.measure_latency, []

    def second(*arguments, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(module, "measure_latency", second)
    found = interrupted(path, tmp_path / "out", recipe="w8", batch=(4, 8, 16))
    assert [part.batch for part in found.report.candidates[0].throughput] == [4]
    assert "no throughput at batch 8, 16: the run ended before" in found.report.notes


# --- measuring that ends early ----------------------------------------------------------------------------------


def sleeping(*names):
    return [CallableContestant(name, "tests.measure.peers:sleeping", {"seconds": 0.001}) for name in names]


def test_latencies_of_complete_rounds_are_kept():
    ending = Ending()

    def progress(done, total, name):
        if done == 2 + 2 * ENOUGH_ROUNDS + 3:  # two loaded, then in the middle of a later round
            raise KeyboardInterrupt

    found = measure_latency(
        sleeping("a", "b"), {}, rounds=50, block_seconds=0.002, ending=ending, progress=progress
    )
    assert ending.interrupted
    assert all(ENOUGH_ROUNDS < len(one.round_ms) < ENOUGH_ROUNDS + 3 and one.error is None for one in found)


def test_with_too_few_rounds_there_is_nothing_to_keep():
    def progress(done, total, name):
        if done == 6:
            raise KeyboardInterrupt

    ending = Ending()
    with pytest.raises(KeyboardInterrupt):
        measure_latency(sleeping("a", "b"), {}, block_seconds=0.002, ending=ending, progress=progress)
    assert not ending.interrupted


def test_when_the_time_is_over_it_ends_after_enough_rounds():
    found = measure_latency(
        sleeping("a", "b"), {}, rounds=50, block_seconds=0.002, close=2.0, ending=Ending(0.0)
    )
    assert [len(one.round_ms) for one in found] == [ENOUGH_ROUNDS] * 2


def test_after_a_ctrl_c_it_is_short():
    ending = Ending()
    with ending.keeping(lambda: True):
        interrupt()
    found = measure_latency(sleeping("a", "b"), {}, block_seconds=0.002, close=2.0, ending=ending)
    assert [len(one.round_ms) for one in found] == [ENOUGH_ROUNDS] * 2


# --- the real command, and a real signal ------------------------------------------------------------------------


@pytest.fixture
def command_line(tmp_path):
    """``fewbits compress`` in a process group of its own, with its temporary files in a folder of theirs."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    CONV_BN.save(work / "model.onnx")
    feeds = CONV_BN.samples(200)
    np.savez(work / "data.npz", **feeds, labels=np.zeros(200, np.int64))
    errors = tmp_path / "stderr"
    started = []

    def start(*arguments):
        given = [
            "compress",
            "model.onnx",
            "--data",
            "data.npz",
            "--threads",
            "1",
            "--max-drop",
            "100%",
            *arguments,
        ]
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", "from fewbits.cli import main; main()", *given],
                cwd=work,
                env={
                    **os.environ,
                    "TMPDIR": str(temporary),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
                preexec_fn=heed,
            )
        started.append(process)
        return process, errors, work, temporary

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def until(process, errors, there):
    deadline = time.monotonic() + 60
    while not there():
        assert process.poll() is None, errors.read_text()
        assert time.monotonic() < deadline, errors.read_text()
        time.sleep(0.005)


def workers(process):
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_while_measuring_writes_what_was_tried(command_line):
    process, errors, work, temporary = command_line("--engine", "onnxruntime", "--recipe", "w8", "--json")
    until(process, errors, lambda: len(workers(process)) >= 2)
    gone = workers(process)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    said = errors.read_text()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "fewbits: interrupted: finishing with what was tried; Ctrl-C again stops at once" in said
    assert (
        said.strip().splitlines()[-1] == "fewbits: interrupted; what was tried until then is in model-fewbits"
    )
    folder = work / "model-fewbits"
    assert {path.name for path in folder.iterdir()} == ARTIFACTS
    report = json.loads(out)
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["interrupted"] is True
    assert report["chosen"] is not None
    assert all(one["latency_ms"]["p50"] > 0 for one in report["candidates"])
    assert {path.name for path in work.iterdir()} == {"model.onnx", "data.npz", "model-fewbits"}
    assert list(temporary.iterdir()) == []
    _, alive = psutil.wait_procs(gone, timeout=5)
    assert alive == []


def test_a_folder_is_gone_though_it_was_being_made(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder("some-") as folder:
        (folder / "file").write_text("")
        assert [one.name for one in tmp_path.glob("some-*/*")] == ["file"]
    assert not any(tmp_path.iterdir())
    make = Path.mkdir

    def interrupted(self, *args, **kwargs):
        make(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), temporary_folder("some-"):
        pass
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_second_ctrl_c_stops_at_once_with_nothing_written(command_line):
    process, errors, work, temporary = command_line("--engine", "onnxruntime", "--recipe", "w8")
    until(process, errors, lambda: len(workers(process)) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    until(process, errors, lambda: "finishing with what was tried" in errors.read_text())
    os.killpg(process.pid, signal.SIGINT)
    start = time.monotonic()
    out, _ = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    said = errors.read_text()
    assert process.returncode == 130, said
    assert out == ""
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1] == "fewbits: interrupted; nothing was written"
    assert {path.name for path in work.iterdir()} == {"model.onnx", "data.npz"}
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_time_budget_from_the_command_line(command_line):
    process, errors, work, _ = command_line("--engine", "onnxruntime", "--time-budget", "1s")
    out, _ = process.communicate(timeout=120)
    said = errors.read_text()
    assert process.returncode == 0, said
    assert re.match(
        r"fewbits: about .* for \d+ candidates, of 0\.\d+ s left: the most promising come first", said
    )
    report = json.loads((work / "model-fewbits" / "report.json").read_text())
    assert report["time_budget_s"] == 1
    assert all(one["original"] and one["latency_ms"]["p50"] for one in report["candidates"])
    assert report["not_tried"]
    assert "ended early: the time was over" in out
