"""What a case measures: contestants on one set of samples become rows; rows are checked against targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench import process
from bench.data import stream
from bench.keep import kept
from bench.paths import MissingError
from fewbits.engines.engine import EngineSettings, get
from fewbits.errors import FewbitsError
from fewbits.measure.latency import CallableContestant, Contestant, Latency, measure_latency, ratio
from fewbits.measure.size import artifact_bytes, artifact_files

THREADS = 2
ROW_BY_ROW = "bench.scoring:outputs"
SAMPLE = 7  # the row of the scored samples that latency is measured on; no model's time depends on its values

Role = Literal["float", "peer", "fewbits"]
Scores = Mapping[str, float]
Score = Callable[[np.ndarray, np.ndarray], Scores]


@dataclass(frozen=True)
class Runnable:
    """A contestant that exists: what to time, its bytes, and a file (.npy) of its outputs on the samples."""

    contestant: Contestant | CallableContestant
    size_bytes: int
    outputs: Path
    note: str = ""
    peak_bytes: int | None = None  # of making it, where that was measured


@dataclass(frozen=True)
class Entrant:
    """A contestant that is still to be made; `make` may raise MissingError, JobError or a FewbitsError."""

    name: str
    role: Role
    make: Callable[[], Runnable]


@dataclass(frozen=True)
class Row:
    """One contestant, measured. Where `error` is set nothing else is known of it."""

    name: str
    role: Role
    size_bytes: int = 0
    latency: Latency | None = None
    scores: Scores = field(default_factory=dict)
    note: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Column:
    """A score as a table shows it: its key in `Row.scores`, its heading, and a format such as "{:.4f}"."""

    key: str
    heading: str
    form: str


@dataclass(frozen=True)
class Check:
    """A measured value against a target.

    Attributes:
        what: the target in words.
        value: what was measured, or None where it could not be.
        limit: what it must reach.
        sense: whether the value must be at most or at least the limit.
        low, high: 95 % interval of the value, where it is a ratio of latencies.
        why: why there is no value, or a remark on it.
    """

    what: str
    value: float | None
    limit: float
    sense: Literal["at most", "at least"]
    low: float | None = None
    high: float | None = None
    why: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached, but for rounding; None where there is no value."""
        if self.value is None:
            return None
        if math.isclose(self.value, self.limit, rel_tol=1e-9):  # 88.29 less 88.14 is a hair more than 0.15
            return True
        return self.value < self.limit if self.sense == "at most" else self.value > self.limit


@dataclass(frozen=True)
class CaseResult:
    """One case: its setting in a sentence, its rows, and its checks."""

    name: str
    title: str
    setting: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]


class Rows:
    """The rows of one case, and questions about them. A row with an error is not an answer to any."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)

    def named(self, *names: str) -> list[Row]:
        """The measured rows of those names, in that order; MissingError, with the reason, where none is."""
        by_name = {row.name: row for row in self.rows}
        found = [by_name[name] for name in names if by_name[name].error is None]
        if not found:
            raise MissingError("; ".join(f"{name}: {by_name[name].error}" for name in names))
        return found

    def fastest(self, *names: str) -> Row:
        """The measured row of those names with the smallest median latency."""
        return min(self.named(*names), key=lambda row: _latency(row).p50_ms)

    def best(self, key: str, *names: str) -> float:
        """The largest score `key` among those names."""
        return max(row.scores[key] for row in self.named(*names))

    def time_check(self, what: str, name: str, against: Sequence[str], limit: float) -> Check:
        """The latency of `name` over that of the fastest row of `against`, at most `limit`."""
        try:
            (row,) = self.named(name)
            other = self.fastest(*against)
        except MissingError as missing:
            return Check(what, None, limit, "at most", why=str(missing))
        share = ratio(_latency(row), _latency(other))
        return Check(what, share.value, limit, "at most", share.low, share.high, f"against {other.name}")

    def score_check(
        self,
        what: str,
        name: str,
        key: str,
        limit: Callable[[], float],
        sense: Literal["at most", "at least"],
    ) -> Check:
        """The score `key` of `name` against a limit, which may itself come from rows."""
        try:
            (row,) = self.named(name)
            return Check(what, row.scores[key], limit(), sense)
        except MissingError as missing:
            return Check(what, None, float("nan"), sense, why=str(missing))

    def peak_check(self, what: str, name: str, original: str) -> Check:
        """The peak memory of making `name`, at most twice that of running the original plus 2 GB; in MB."""

        def limit() -> float:
            return 2 * self.named(original)[0].scores["peak_mb"] + 2000

        return self.score_check(f"{what}: peak MB", name, "peak_mb", limit, "at most")

    def size_check(self, what: str, name: str, limit_bytes: float) -> Check:
        """The bytes of `name`, at most `limit_bytes`; value and limit are in MB."""
        try:
            (row,) = self.named(name)
        except MissingError as missing:
            return Check(what, None, limit_bytes / 1e6, "at most", why=str(missing))
        return Check(what, row.size_bytes / 1e6, limit_bytes / 1e6, "at most")


def run(
    entrants: Sequence[Entrant],
    samples: Path | None,
    score: Score,
    tell: Callable[[str], None],
    feeds: Mapping[str, np.ndarray] | None = None,
) -> Rows:
    """Make every entrant, time all that could be made side by side, and score them against the first one.

    The first entrant is the reference: what it gives on `samples` is what the others' outputs are scored
    against. Latency is at batch 1 on one row of `samples`, or on `feeds`; without either,
    entrants know their own inputs.
    """
    made: dict[str, Runnable] = {}
    errors: dict[str, str] = {}
    for entrant in entrants:
        tell(f"making and scoring {entrant.name}")
        try:
            made[entrant.name] = entrant.make()
        except (MissingError, process.JobError, FewbitsError) as error:
            errors[entrant.name] = str(error)
    tell("timing all side by side")
    latencies = _latencies(made, feeds or (_row(samples) if samples else {}))
    reference = made.get(entrants[0].name)
    rows = []
    for entrant in entrants:
        name = entrant.name
        error = errors.get(name) or latencies[name].error
        if reference is None:
            error = error or f"nothing to compare with: {errors[entrants[0].name]}"
        if error or reference is None:
            rows.append(Row(name, entrant.role, error=error))
            continue
        runnable = made[name]
        scores = score(np.load(reference.outputs), np.load(runnable.outputs))
        rows.append(Row(name, entrant.role, runnable.size_bytes, latencies[name], scores, runnable.note))
    return Rows(rows)


def _row(samples: Path) -> dict[str, np.ndarray]:
    return next(row for number, row in enumerate(stream(samples)) if number == SAMPLE)


def _latencies(made: Mapping[str, Runnable], feeds: Mapping[str, np.ndarray]) -> dict[str, Latency]:
    if not made:
        return {}
    measured = measure_latency([runnable.contestant for runnable in made.values()], feeds)
    return dict(zip(made, measured, strict=True))


def file_runnable(
    name: str, path: Path, settings: EngineSettings, samples: Path, note: str = "", job: str = ROW_BY_ROW
) -> Runnable:
    """A file in an engine, with its outputs on `samples` computed by `job`, once, in a process of its own."""
    outputs = kept(
        "outputs",
        path.stem,
        ".npy",
        (*artifact_files(path), samples),
        settings=asdict(settings),
        version=get(settings.engine).version,
    )
    if not outputs.is_file():
        process.call(
            job,
            path=str(path),
            settings=asdict(settings),
            samples=str(samples),
            out=str(outputs),
        )
    return Runnable(Contestant(name, path, settings), artifact_bytes(path), outputs, note)


def _latency(row: Row) -> Latency:
    assert row.latency is not None
    return row.latency


def as_json(result: CaseResult) -> dict[str, Any]:
    """The result as JSON values, with each check's verdict."""
    document = _finite(asdict(result))
    for check, entry in zip(result.checks, document["checks"], strict=True):
        entry["reached"] = check.reached
    return document


def _finite(value: Any) -> Any:
    """JSON has no word for infinity (the SQNR of equal outputs) nor for NaN: None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
