"""Latency of several contestants, measured side by side: a process each, blocks of runs in turn.

Two runtimes in one process falsify each other, because the threads of the one that ran last still spin while
the next one runs. So every contestant has a worker process (`fewbits.measure.worker`) that blocks while it is
not its turn, and each round gives every contestant one block, in an order shuffled anew. What slows the
machine down for a while then slows all of them, and ratios are taken within rounds.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewbits.ending import Ending, temporary_folder
from fewbits.engines.engine import EngineSettings
from fewbits.errors import InputError
from fewbits.measure.size import artifact_files
from fewbits.measure.worker_process import WorkerFailure, WorkerProcess

TIE = 0.03
"""Ratios within 3 % of 1 are ties."""

ENOUGH_ROUNDS = 5  # where measuring ends early, it does not before so many
ROUNDS = 20  # many short ones: beside other work the intervals were narrower than from 12 of 0.15 s
BLOCK_SECONDS = 0.08
TIMEOUT_S = 120.0

Progress = Callable[[int, int, str], None]
"""Called with the steps done, the steps in all, and the name of the contestant whose step begins."""


@dataclass(frozen=True)
class Contestant:
    """A file, run in an engine under settings."""

    name: str
    path: str | Path
    settings: EngineSettings

    def preparation(self, feeds_file: Path) -> dict[str, Any]:
        """The request that prepares a worker for this contestant."""
        return {
            "do": "prepare",
            "kind": "file",
            "path": str(Path(self.path).absolute()),
            "settings": asdict(self.settings),
            "feeds": str(feeds_file),
        }


@dataclass(frozen=True)
class CallableContestant:
    """Anything else to be timed in the same rounds.

    ``factory`` is "module:function". The function is called in the worker with ``kwargs`` (JSON values) and
    returns the function without arguments that is timed. What its module imports is not counted as loading;
    the factory sets the number of threads.
    """

    name: str
    factory: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def preparation(self, feeds_file: Path) -> dict[str, Any]:
        """The request that prepares a worker for this contestant."""
        return {"do": "prepare", "kind": "callable", "factory": self.factory, "kwargs": dict(self.kwargs)}


@dataclass(frozen=True)
class Latency:
    """What was measured of one contestant. Where ``error`` is set it failed: times are NaN, counts 0.

    Attributes:
        name: the contestant's.
        p50_ms: the median of the per-round medians.
        p10_ms, p90_ms: percentiles of all counted runs.
        round_ms: the median of each round, in order; rounds of contestants measured together are pairs.
        load_ms: from the file to a session that can run, in a process that has imported the runtime.
        resident_bytes: by how much loading and running a few times made the process grow.
        runs: how many runs were counted.
        error: one line, or None.
    """

    name: str
    p50_ms: float = float("nan")
    p10_ms: float = float("nan")
    p90_ms: float = float("nan")
    round_ms: tuple[float, ...] = ()
    load_ms: float = float("nan")
    resident_bytes: int = 0
    runs: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Ratio:
    """A speedup with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def tie(self) -> bool:
        """Whether the two are equally fast, as far as `TIE` goes."""
        return 1 / (1 + TIE) <= self.value <= 1 + TIE


def ratio(a: Latency, b: Latency, seed: int = 0) -> Ratio:
    """How many times faster ``b`` is than ``a``: 2.0 is half the time.

    The value is the median over the rounds of a's time divided by b's; the interval comes from 2,000
    resamples of the rounds. Both must come from one `measure_latency` call; where one of them has further
    rounds, the first ones pair. InputError where one of them failed.
    """
    for latency in (a, b):
        if latency.error is not None:
            raise InputError(f"{latency.name} has no speedup, because it failed: {latency.error}")
    rounds = min(len(a.round_ms), len(b.round_ms))
    ratios = np.array(a.round_ms[:rounds]) / np.array(b.round_ms[:rounds])
    draws = np.random.default_rng(seed).integers(0, len(ratios), size=(2000, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def measure_latency(
    contestants: Sequence[Contestant | CallableContestant],
    feeds: Mapping[str, np.ndarray],
    *,
    rounds: int = ROUNDS,
    block_seconds: float = BLOCK_SECONDS,
    seed: int = 0,
    timeout_s: float = TIMEOUT_S,
    close: float | None = None,
    beside: Collection[str] = (),
    ending: Ending | None = None,
    progress: Progress | None = None,
) -> list[Latency]:
    """Measure ``contestants`` side by side on one set of feeds; the results are in their order.

    Files are compiled for exactly the shapes of ``feeds`` (input name to array). Each of ``rounds`` rounds
    gives each contestant ``block_seconds`` of runs, at least one. Contestants with the same bytes and
    settings are measured once. One that fails, crashes, or takes longer than ``timeout_s`` over loading or
    over a block carries its error and leaves the measurement; the others go on. However this ends, no worker
    is left running. With ``close`` (1.1, say), all that are up to so many times as slow as the fastest get as
    many rounds again, with those named in ``beside``: to tell what is close takes more rounds, and short ones.
    ``ending`` may cut it short after `ENOUGH_ROUNDS`; where Ctrl-C was pressed before, there are no more than these.
    InputError where names repeat or ``rounds`` is below 1.
    """
    names = [contestant.name for contestant in contestants]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"contestants need names of their own; repeated: {', '.join(repeated)}")
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; give 1 or more")
    tell = progress or (lambda done, total, name: None)
    end = ending or Ending()
    rounds = min(rounds, ENOUGH_ROUNDS) if end.interrupted else rounds
    twins = _twins(contestants)
    with temporary_folder("fewbits-measure-") as folder, ExitStack() as stack:
        feeds_file = folder / "feeds.npz"
        np.savez(feeds_file, **dict(feeds))  # type: ignore[arg-type]
        lanes = [
            # Here the workers start and import side by side; below they load and run one at a time.
            _Lane(c.name, stack.enter_context(WorkerProcess()), c.preparation(feeds_file), timeout_s)
            for c in contestants
            if c.name not in twins
        ]
        total = len(lanes) * (rounds + 1)  # and what is close again, which is not known yet
        for done, lane in enumerate(lanes):
            tell(done, total, lane.name)
            lane.load()
        shuffle = random.Random(seed).shuffle

        def play(chosen: Sequence[_Lane], done: int, total: int) -> None:
            for round_number in range(rounds):
                if round_number >= ENOUGH_ROUNDS:
                    end.check()
                turns = list(chosen)
                shuffle(turns)
                for turn, lane in enumerate(turns):
                    tell(done + round_number * len(chosen) + turn, total, lane.name)
                    lane.block(block_seconds)

        def enough() -> bool:
            return ending is not None and all(lane.rounds >= ENOUGH_ROUNDS for lane in lanes)

        with end.keeping(enough):
            play(lanes, len(lanes), total)
            if close is not None and not end.interrupted:
                end.check()
                final = _close(lanes, close, {twins.get(name, name) for name in beside})
                play(final, total, total + len(final) * rounds)
                total += len(final) * rounds
        tell(total, total, "")
    measured = {lane.name: lane.latency() for lane in lanes}
    return [replace(measured[twins.get(name, name)], name=name) for name in names]


def _close(lanes: Sequence[_Lane], close: float, beside: Collection[str]) -> list[_Lane]:
    """Those up to ``close`` times as slow as the fastest, where there are several, and those named."""
    times = {lane.name: lane.latency().p50_ms for lane in lanes}
    fastest = min((time for time in times.values() if time == time), default=math.inf)
    near = {name for name, time in times.items() if time <= fastest * close}
    return [lane for lane in lanes if lane.name in near | set(beside)] if len(near) > 1 else []


class _Lane:
    """One contestant on its way through a measurement: its worker and what that has answered."""

    def __init__(
        self, name: str, worker: WorkerProcess, preparation: dict[str, Any], timeout_s: float
    ) -> None:
        self.name = name
        self._worker = worker
        self._timeout_s = timeout_s
        self._error: str | None = None
        self._loaded: dict[str, Any] = {}
        self._blocks: list[np.ndarray] = []
        worker.send(preparation)

    def load(self) -> None:
        """Let the worker compile its file."""
        self._attempt(self._load)

    def block(self, seconds: float) -> None:
        """Let the worker run for one block."""
        self._attempt(lambda: self._block(seconds))

    @property
    def rounds(self) -> float:
        """How many it has taken part in; without end for one that failed, which no one waits for."""
        return len(self._blocks) if self._error is None else math.inf

    def latency(self) -> Latency:
        """What was measured."""
        if self._error is not None:
            return Latency(self.name, error=self._error)
        medians = tuple(float(np.median(block)) for block in self._blocks)
        runs = np.concatenate(self._blocks)
        p10, p90 = (float(value) for value in np.percentile(runs, [10, 90]))
        return Latency(
            name=self.name,
            p50_ms=float(np.median(medians)),
            p10_ms=p10,
            p90_ms=p90,
            round_ms=medians,
            load_ms=self._loaded["load_ms"],
            resident_bytes=self._loaded["resident_bytes"],
            runs=len(runs),
        )

    def _attempt(self, step: Callable[[], None]) -> None:
        if self._error is None:
            try:
                step()
            except WorkerFailure as failure:
                self._error = str(failure)
                self._worker.kill()

    def _load(self) -> None:
        self._worker.receive(self._timeout_s)  # the answer to its preparation
        self._worker.send({"do": "load"})
        self._loaded = self._worker.receive(self._timeout_s)

    def _block(self, seconds: float) -> None:
        self._worker.send({"do": "block", "seconds": seconds})
        times_ns = self._worker.receive(self._timeout_s + seconds)["times_ns"]
        self._blocks.append(np.array(times_ns) / 1e6)


def _twins(contestants: Sequence[Contestant | CallableContestant]) -> dict[str, str]:
    """Contestants that need no measuring, each with the earlier one of the same bytes and settings."""
    first: dict[object, str] = {}
    twins: dict[str, str] = {}
    for contestant in contestants:
        key = _identity(contestant) if isinstance(contestant, Contestant) else contestant.name
        if first.setdefault(key, contestant.name) != contestant.name:
            twins[contestant.name] = first[key]
    return twins


def _identity(contestant: Contestant) -> object:
    """What a latency depends on; the name alone where the file cannot be read, as its worker will say."""
    try:
        files = artifact_files(contestant.path)
    except InputError:
        return contestant.name
    return (contestant.settings, tuple((file.name, _sha256(file)) for file in files[1:]), _sha256(files[0]))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
