"""Fixtures that several test files share."""

import functools
import importlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from fewbits import cli
from fewbits.measure.latency import measure_latency

ESTIMATE = re.compile(r"fewbits: about .* s for \d+ candidates.*")
DATA = Path(os.environ.get("FEWBITS_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real models and data; tests that need it are skipped without."""
    if not DATA.is_dir():
        pytest.skip(f"no folder of real models and data at {DATA}; set FEWBITS_DATA")
    return DATA


@pytest.fixture
def short_measuring(monkeypatch):
    """Latencies from two short rounds: enough to see that they are there."""
    _shorten(monkeypatch)


@pytest.fixture(scope="module")
def short_measuring_in_module():
    """The same for what a module's fixtures compress."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _shorten(monkeypatch)
        yield


def _shorten(monkeypatch):
    short = functools.partial(measure_latency, rounds=2, block_seconds=0.005)
    # By its place in sys.modules: the name fewbits.compress is the function's.
    monkeypatch.setattr(importlib.import_module("fewbits.compress"), "measure_latency", short)
    few = functools.partial(measure_latency, block_seconds=0.002)
    monkeypatch.setattr(importlib.import_module("fewbits.throughput"), "measure_latency", few)


@dataclass(frozen=True)
class Answer:
    """What the command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs ``fewbits ...`` in this process, through the function that the installed command calls."""

    def run(*arguments) -> Answer:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["fewbits", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    return run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder, with temporary files going to a folder beside it that must stay empty too."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return work


@pytest.fixture
def refused(command, place):
    """Runs a command that must be refused with nothing written, and gives its one line."""

    def run(*arguments) -> str:
        before = contents(place)
        answer = command(*arguments)
        assert answer.code == 2, answer.err
        assert contents(place) == before, "something was written"
        assert list((place.parent / "temporary").iterdir()) == []
        assert answer.out == ""
        return one_line(answer.err)

    return run


def one_line(text: str) -> str:
    """The line of an error, which must be the only one but for how long the run would have taken."""
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.strip() and not ESTIMATE.fullmatch(line)]
    assert len(lines) == 1, text
    assert lines[0].startswith("fewbits: ")
    return lines[0]


def contents(folder):
    """Every path below, with when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
