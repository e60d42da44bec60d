"""Files raced side by side under several settings, and the records of what was timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewbits.engines.engine import EngineSettings, get
from fewbits.errors import EngineError
from fewbits.measure.latency import Contestant, Latency, Ratio, measure_latency
from fewbits.report import record as r
from fewbits.report.record import Count, MaybeCount, Number, Record
from fewbits.samples import Feeds

Progress = Callable[[str, int, int], None]
"""As in :mod:`fewbits.compress`: a stage, the steps done in it, and the steps in all (0 where not known)."""


class Timing(Record):
    """A file in one engine on this machine.

    Attributes:
        load_ms: from the file to a session that can run.
        resident_bytes: by how much loading and running a few times made a process grow.
        error: the engine's own first line, where it could not be compiled or run.
    """

    engine: str
    precision: str
    threads: Count
    activation_group_size: Count = 0
    latency_ms: r.Latency = r.Latency()
    load_ms: Number = None
    resident_bytes: MaybeCount = None
    error: str | None = None


class Speedup(Record):
    """How many times faster: the median over rounds measured side by side, with its 95 % interval."""

    value: Number
    low: Number
    high: Number
    tie: bool
    """Within 3 % of each other."""


@dataclass(frozen=True)
class Runner:
    """A file and the settings to try it under."""

    name: str
    path: Path
    settings: tuple[EngineSettings, ...]


@dataclass(frozen=True)
class Raced:
    """A file under one of them, measured."""

    settings: EngineSettings
    latency: Latency

    def timing(self) -> Timing:
        """What was measured, as a record."""
        s, latency = self.settings, self.latency
        return Timing(
            engine=s.engine,
            precision=s.precision,
            threads=s.threads,
            activation_group_size=s.activation_group_size,
            latency_ms=r.Latency(p50=latency.p50_ms, p10=latency.p10_ms, p90=latency.p90_ms),
            load_ms=latency.load_ms,
            resident_bytes=None if latency.error else latency.resident_bytes,
            error=latency.error,
        )


def race(runners: Sequence[Runner], sample: Feeds, rounds: int, progress: Progress) -> list[list[Raced]]:
    """Measure every runner under all of its settings side by side; for each, the fastest comes first.

    Raises:
        EngineError: a runner that none of its settings can run.
    """
    contestants = {
        (runner.name, s): Contestant(f"{runner.name} {s.engine}", runner.path, s)
        for runner in runners
        for s in runner.settings
    }

    def tell(done: int, total: int, name: str) -> None:
        progress("measure", done, total)

    latencies = measure_latency(list(contestants.values()), sample, rounds=rounds, progress=tell)
    measured = dict(zip(contestants, latencies, strict=True))
    found = []
    for runner in runners:
        raced = [Raced(s, measured[runner.name, s]) for s in runner.settings]
        raced.sort(key=lambda one: float("inf") if one.latency.error else one.latency.p50_ms)
        if raced[0].latency.error:
            errors = "; ".join(one.latency.error or "" for one in raced)
            raise EngineError(f"{runner.path}: no engine here can run it as asked: {errors}")
        found.append(raced)
    return found


def settings_to_try(
    pinned: EngineSettings | None, engines: Sequence[str], threads: int
) -> tuple[EngineSettings, ...]:
    """The pinned settings on that many threads; without any, float32 in each of the engines.

    Raises:
        InputError: the pinned engine is not installed.
    """
    if pinned is not None:
        get(pinned.engine)
        return (replace(pinned, threads=threads),)
    return tuple(EngineSettings(engine, "f32", threads) for engine in engines)


def speedup_of(found: Ratio) -> Speedup:
    """The ratio as a record."""
    return Speedup(value=found.value, low=found.low, high=found.high, tie=found.tie)


def spelled_out(sample: Feeds, threads: int) -> str:
    """What one timed run is: the shapes of its inputs, and the threads."""
    shapes = ", ".join(f"{name} {'x'.join(map(str, a.shape)) or 'scalar'}" for name, a in sample.items())
    return f"{shapes}, {threads} thread{'s' if threads > 1 else ''}"


def spread(latency: r.Latency) -> str:
    """The 10th and 90th percentile, ms."""
    from fewbits.report import words

    decimals = words.decimals_for([latency.p10])
    return f"{words.number(latency.p10, decimals)} to {words.number(latency.p90, decimals)}"
