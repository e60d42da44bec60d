"""Time to calibrate and write `w8a8` of MiniLM, 256 samples of 64 tokens."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench import data, models
from bench.case import Case, Tell
from bench.paths import MissingError, cached
from bench.process import JobError, call
from bench.table import CaseResult, Column, Row, Rows

ROUNDS = 3
NNCF, FEWBITS = "NNCF int8 (OpenVINO model)", "fewbits w8a8"
COLUMNS = (Column("seconds", "seconds, median", "{:.1f}"), Column("slowest", "slowest", "{:.1f}"))


def measure(tell: Tell) -> CaseResult:
    """See `Case.measure`."""
    given = {
        "source": str(models.minilm()),
        "calibration": str(data.minilm_calibration(256, 64)),
        "held_out": str(data.minilm_paragraphs(64)),
    }
    jobs: dict[str, Callable[[], float]] = {
        NNCF: lambda: call("bench.jobs:nncf_seconds", **given, out=str(cached("times/nncf.xml"))).value,
        FEWBITS: lambda: call("bench.jobs:fewbits_seconds", **given, out=str(cached("times/fewbits"))).value,
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    errors: dict[str, str] = {}
    for round_number in range(ROUNDS):
        for name, job in jobs.items():
            if name not in errors:
                tell(f"{name}, round {round_number + 1} of {ROUNDS}")
                try:
                    times[name].append(job())
                except (MissingError, JobError) as error:
                    errors[name] = str(error)
    rows = Rows([_row(name, times[name], errors.get(name)) for name in jobs])
    check = rows.score_check(
        "seconds, NNCF's",
        FEWBITS,
        "seconds",
        lambda: rows.named(NNCF)[0].scores["seconds"],
        "at most",
    )
    setting = (
        "256 samples of 64 tokens, 2 cores, an own process each, in turn. From reading the ONNX file to the "
        "written file; imports and measuring are not counted."
    )
    return CaseResult(CASE.name, CASE.title, setting, COLUMNS, rows.rows, (check,))


def _row(name: str, times: list[float], error: str | None) -> Row:
    role = "fewbits" if name == FEWBITS else "peer"
    if error:
        return Row(name, role, error=error)
    return Row(name, role, scores={"seconds": statistics.median(times), "slowest": max(times)})


CASE = Case("calibration-time", "Time to calibrate and write w8a8 of MiniLM", measure)
