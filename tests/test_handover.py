"""Handing over: the whole folder or nothing, whatever happens in between; what is not ours is left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fewbits.errors import InputError
from fewbits.handover import REPORT, check_place, replacing
from tests.interrupting import heed
from tests.report import factory
from tests.tiny import CONV_BN

ERRORS = [ValueError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit]


def tree(folder):
    """Every path below, with what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def ours(folder, **files):
    """A folder as fewbits leaves it."""
    folder.mkdir()
    (folder / REPORT).write_text(factory.smallest().to_json())
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def fill(folder, text="new"):
    (folder / REPORT).write_text(factory.smallest().to_json())
    (folder / "artifact").write_text(text)
    (folder / "inner").mkdir()
    (folder / "inner" / "more").write_text(text)


def hand_over(out, at_last):
    with replacing(out) as folder:
        fill(folder)
        at_last()


def raising(error):
    def do():
        raise error

    return do


# --- all of it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "our folder"])
def test_the_finished_folder_takes_its_place(tmp_path, there):
    out = tmp_path / "out"
    if there == "an empty folder":
        out.mkdir()
    if there == "our folder":
        ours(out, old="left over")
        (out / "artifact").write_text("old")
    with replacing(out) as folder:
        assert folder != out
        assert folder.parent == out.parent
        fill(folder)
        assert (out / "old").exists() == (there == "our folder"), "until the end the old one is in its place"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert set(tree(out)) == {REPORT, "artifact", "inner", "inner/more"}
    assert (out / "artifact").read_text() == "new"
    assert out.stat().st_mode & 0o777 == 0o755


def test_again_and_again(tmp_path):
    for number in range(3):
        with replacing(tmp_path / "out") as folder:
            fill(folder, str(number))
        assert (tmp_path / "out" / "artifact").read_text() == str(number)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_relative_place_is_where_it_was_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with replacing(Path("out")) as folder:
        fill(folder)
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert (tmp_path / "out" / "artifact").read_text() == "new"


def test_the_folder_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with replacing(Path()) as folder:
        fill(folder)
    assert (tmp_path / "here" / "artifact").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


# --- or nothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("there", [True, False])
def test_whatever_is_raised_inside_leaves_all_as_it_was(tmp_path, there, error):
    if there:
        ours(tmp_path / "out", old="kept")
    before = tree(tmp_path)
    with pytest.raises(error):
        hand_over(tmp_path / "out", raising(error))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1])
def test_an_exchange_that_breaks_off_is_taken_back(tmp_path, monkeypatch, at, error):
    """The first rename moves the old folder aside, the second puts the new one in its place."""
    ours(tmp_path / "out", old="kept")
    before = tree(tmp_path)
    done, rename = [], Path.rename

    def breaking(self, target):
        done.append(target)
        if len(done) == at + 1:
            raise error
        return rename(self, target)

    with pytest.raises(error):
        hand_over(tmp_path / "out", lambda: monkeypatch.setattr(Path, "rename", breaking))
    assert len(done) >= at + 1
    assert tree(tmp_path) == before


# --- what is not ours -------------------------------------------------------------------------------------------


def foreign(out):
    out.mkdir()
    (out / "precious.txt").write_text("mine")


def foreign_report(out):
    out.mkdir()
    (out / REPORT).write_text('{"version": 1, "of": "something else"}')


def broken_report(out):
    ours(out)
    (out / REPORT).write_bytes((out / REPORT).read_bytes()[:-40])


def file(out):
    out.write_text("mine")


def link(out):
    ours(out.with_name("real"))
    out.symlink_to(out.with_name("real"))


def dangling_link(out):
    out.symlink_to(out.with_name("nowhere"))


@pytest.mark.parametrize("make", [foreign, foreign_report, broken_report, file, link, dangling_link])
def test_what_fewbits_did_not_write_is_refused_at_once_and_left_alone(tmp_path, make):
    out = tmp_path / "out"
    make(out)
    before = tree(tmp_path)
    for refused in (lambda: check_place(out), lambda: replacing(out).__enter__()):
        with pytest.raises(InputError, match="give another --out"):
            refused()
    assert tree(tmp_path) == before


def test_a_place_without_a_parent_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        check_place(tmp_path / "a" / "b")


def test_a_mount_point_is_refused_at_once():
    """It could not be renamed at the end."""
    if not os.path.ismount("/dev/shm") or any(Path("/dev/shm").iterdir()):
        pytest.skip("no empty mount point here")
    with pytest.raises(InputError, match="mount point"):
        check_place(Path("/dev/shm"))


def test_checking_leaves_nothing(tmp_path):
    check_place(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- the real command, interrupted ------------------------------------------------------------------------------


def scoring(temporary):
    """The original is being scored: no candidate has been tried."""
    return any(temporary.glob("fewbits-*/reference/*.npz"))


@pytest.fixture
def folders(tmp_path):
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    CONV_BN.save(work / "model.onnx")
    feeds = CONV_BN.samples(400)
    np.savez(work / "data.npz", **feeds, labels=np.zeros(400, np.int64))
    return work, temporary


@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_gives_130_and_leaves_nothing(folders, there):
    """What Ctrl-C does later is tested with what ends early."""
    work, temporary = folders
    if there:
        ours(work / "model-fewbits", old="kept")
    before = tree(work)
    arguments = ["compress", "model.onnx", "--data", "data.npz", "--threads", "1"]
    command = subprocess.Popen(
        [sys.executable, "-c", "from fewbits.cli import main; main()", *arguments],
        cwd=work,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed,
    )
    process = psutil.Process(command.pid)
    workers = []
    try:
        deadline = time.monotonic() + 60
        while not scoring(temporary):
            assert command.poll() is None, command.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        workers = process.children(recursive=True)
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does: workers get it too
        out, err = command.communicate(timeout=30)
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
            command.communicate()
    assert command.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "fewbits: interrupted; nothing was written"
    assert tree(work) == before
    assert list(temporary.iterdir()) == []
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
