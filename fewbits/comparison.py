"""Two files side by side, and a saved folder measured again: size, speed, outputs."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, Session, available, get
from fewbits.errors import EngineError, InputError
from fewbits.handover import REPORT
from fewbits.loaded import saved
from fewbits.measure.latency import ROUNDS, Contestant, Latency, Ratio, measure_latency, ratio
from fewbits.measure.quality import Reference, score
from fewbits.measure.size import artifact_bytes, artifact_files
from fewbits.models.model import open_model
from fewbits.planning.model_info import Dim, ModelInfo, TensorInfo
from fewbits.report import record as r
from fewbits.report.record import Count, MaybeCount, Number, Record
from fewbits.samples import Feeds, open_samples, synthetic

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BATCH = 32
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


class Compared(Record):
    """One of the two that are compared.

    Attributes:
        path: as it was given, a file or a folder.
        file: the model file that ran.
        timing: in the engine that ran it fastest, or with the settings that were saved with it.
        others: in the other engines that were tried.
        score: by the comparison's metric, in percent.
    """

    path: str
    file: str
    size_bytes: Count
    timing: Timing
    others: tuple[Timing, ...] = ()
    score: Number = None


class OutputDifference(Record):
    """How far one output of B lies from A's, over all samples.

    Attributes:
        elements: how many values were compared.
        mean_abs: mean magnitude of A's values, to judge the differences by.
        mean_difference, max_difference: of magnitudes ``|B - A|`` where both are finite or equal.
        not_finite: values that are NaN or infinite in one of the two and not equal in the other.
    """

    name: str
    elements: Count
    mean_abs: Number
    mean_difference: Number
    max_difference: Number
    not_finite: Count


class Comparison(Record):
    """What :func:`compare` found. Ratios are B's over A's.

    Attributes:
        speedup: how many times faster B is than A.
        metric: what ``score`` means: ``top1`` of the labels, or ``agreement`` or ``cosine`` with A's outputs.
        latency_at: what one timed run is.
    """

    machine: r.Machine
    a: Compared
    b: Compared
    size_ratio: Number
    speedup: Speedup
    samples: Count
    metric: str
    agreement: r.Agreement
    outputs: tuple[OutputDifference, ...]
    latency_at: str

    def to_json(self, indent: int | None = 2) -> str:
        """The record as JSON text without NaN or infinity."""
        return self.model_dump_json(indent=indent)

    def show(self, console: Console) -> None:
        """Print both in one table, and the differences of their outputs in another."""
        from rich.text import Text

        from fewbits.report import words

        table = _table(("", "engine"), ("size", "median", "p10 to p90", "load", "memory", self.metric))
        for name, side in (("A", self.a), ("B", self.b)):
            timing = side.timing
            row = (
                name,
                f"{timing.engine} {timing.precision}",
                words.size(side.size_bytes),
                words.milliseconds(timing.latency_ms.p50),
                _spread(timing.latency_ms),
                words.milliseconds(timing.load_ms),
                words.size(timing.resident_bytes),
                words.NOTHING if side.score is None else f"{side.score:.2f} %",
            )
            table.add_row(*map(Text, row))
        console.print(Text(f"A  {self.a.path}\nB  {self.b.path}"), soft_wrap=True)
        console.print(table)
        speed = _faster("B", "A", self.speedup)
        console.print(Text(f"B has {words.share(self.size_ratio)} of A's bytes; {speed}.", style="bold"))
        console.print(Text(_agreement(self.agreement, self.samples, self.metric)))
        outputs = _table(("output",), ("values", "mean |A|", "mean |B-A|", "max |B-A|", "not finite"))
        for one in self.outputs:
            numbers = (one.mean_abs, one.mean_difference, one.max_difference)
            cells = (words.shortened(one.name, 36), words.count(one.elements), *map(_short, numbers))
            outputs.add_row(*map(Text, (*cells, words.count(one.not_finite))))
        console.print(outputs)
        for name, side in (("A", self.a), ("B", self.b)):
            for timing in side.others:
                what = timing.error or words.milliseconds(timing.latency_ms.p50)
                console.print(Text(f"{name} in {timing.engine} {timing.precision}: {what}", style="dim"))
        console.print(Text(f"latency at {self.latency_at}; {self.machine.cpu}", style="dim"))


class Remeasured(Record):
    """What :func:`measure` found: a saved file now and on this machine, and as its report has it.

    Attributes:
        path: of the folder.
        candidate: the saved candidate's name in its report.
        unchanged: the file still has the bytes that were measured.
        now, then: the saved file with its settings; ``then`` as in the report.
        times_then: ``then``'s median over ``now``'s; above 1 it is faster now. Not measured side by side.
        original_now, original_then: the original in float32 in its fastest engine.
        original_missing: why the original was not measured beside it.
        speedup_now, speedup_then: of the saved file over the original, measured side by side.
        machine_now, machine_then: where the numbers come from.
    """

    path: str
    candidate: str
    file: str
    size_bytes: Count
    unchanged: bool
    now: Timing
    then: Timing
    times_then: Number
    original_now: Timing | None
    original_then: Timing | None
    original_missing: str | None
    speedup_now: Speedup | None
    speedup_then: Speedup | None
    machine_now: r.Machine
    machine_then: r.Machine
    latency_at: str

    def to_json(self, indent: int | None = 2) -> str:
        """The record as JSON text without NaN or infinity."""
        return self.model_dump_json(indent=indent)

    def show(self, console: Console) -> None:
        """Print now and then side by side."""
        from rich.text import Text

        from fewbits.report import words

        def latency(timing: Timing | None) -> str:
            if timing is None or timing.latency_ms.p50 is None:
                return words.NOTHING
            return f"{words.milliseconds(timing.latency_ms.p50)}  ({_spread(timing.latency_ms)})"

        def speedup(one: Speedup | None) -> str:
            if one is None or one.value is None:
                return words.NOTHING
            interval = "" if one.low is None or one.high is None else f"  ({one.low:.2f} to {one.high:.2f})"
            return f"{words.times(one.value)}{interval}"

        engine = self.now.engine
        machines = (self.machine_now, self.machine_then)
        table = _table(("", "now", "then"), ())
        for row in (
            ("CPU", self.machine_now.cpu, self.machine_then.cpu),
            (engine, *(machine.engines.get(engine, words.NOTHING) for machine in machines)),
            ("threads", str(self.now.threads), str(self.then.threads)),
            (f"median at {self.now.precision}", latency(self.now), latency(self.then)),
            ("original at f32", latency(self.original_now), latency(self.original_then)),
            ("speedup", speedup(self.speedup_now), speedup(self.speedup_then)),
            ("load", words.milliseconds(self.now.load_ms), words.milliseconds(self.then.load_ms)),
            ("memory", words.size(self.now.resident_bytes), words.size(self.then.resident_bytes)),
        ):
            table.add_row(*map(Text, row))
        console.print(
            Text(f"{self.path}: {self.candidate}, {words.size(self.size_bytes)}", style="bold"),
            soft_wrap=True,
        )
        console.print(table)
        if self.times_then is not None:
            console.print(
                Text(f"{words.times(self.times_then)} as fast as when it was measured.", style="bold")
            )
        if not self.unchanged:
            console.print(
                Text("The file is not the one that was measured: its bytes have changed.", style="yellow")
            )
        if self.original_missing:
            console.print(Text(self.original_missing, style="dim"))
        console.print(Text(f"latency at {self.latency_at}", style="dim"))


def compare(
    a: str | Path,
    b: str | Path,
    data: object,
    *,
    engine: str = "auto",
    threads: int | None = None,
    rounds: int = ROUNDS,
    progress: Progress = lambda stage, done, total: None,
) -> Comparison:
    """Put two models side by side: bytes, latency measured in turn, and their outputs on the same samples.

    Args:
        a, b: ``.onnx`` files, which run in float32 in the engine that runs them fastest; or folders that
            ``fewbits compress`` wrote, whose file runs as it was saved, in its engine and at its precision.
        data: samples, as :func:`fewbits.compress.compress` takes them; with labels both are scored.
        engine: ``auto`` to try all that are installed, or one of them; for plain files.
        threads: of one inference, for both; where None those saved with a folder, or the physical cores.
        rounds: of measuring, in which every contestant has its turn.
        progress: told of what goes on.

    Raises:
        InputError: a missing or unreadable file, data that does not fit, or inputs or outputs that differ.
        EngineError: no engine can run one of them.
    """
    progress("load", 0, 0)
    (path_a, saved_a), (path_b, saved_b) = _resolve(Path(a)), _resolve(Path(b))
    count = threads or next((s.threads for s in (saved_a, saved_b) if s is not None), cpu().physical_cores)
    engines = tuple(available()) if engine == "auto" else (get(engine).name,)
    model_a, model_b = open_model(path_a), open_model(path_b)
    inputs = _common(Path(a), Path(b), model_a.info, model_b.info)
    samples = open_samples(data, inputs)
    batch = next((info.shape[0] for info in inputs if info.shape and isinstance(info.shape[0], int)), None)
    sample = samples.first(batch or 1)

    runners = [
        _Runner("A", path_a, _settings(saved_a, engines, count)),
        _Runner("B", path_b, _settings(saved_b, engines, count)),
    ]
    (best_a, *others_a), (best_b, *others_b) = _race(runners, sample, rounds, progress)

    progress("outputs", 0, 0)
    session_a, session_b = _session(path_a, best_a), _session(path_b, best_b)
    # Outputs that are NaN or infinite are counted; NumPy need not warn of them.
    quiet = np.errstate(divide="ignore", invalid="ignore")
    with tempfile.TemporaryDirectory(prefix="fewbits-compare-") as folder, quiet:
        reference = Reference(Path(folder))
        reference.record(session_a, samples, batch or BATCH)
        metric = reference.metric(samples.has_labels())
        watched = _Watched(session_b, iter(reference), session_a.output_names)
        quality = score(watched, samples, batch or BATCH, reference, metric)
        own = score(session_a, samples, batch or BATCH, reference, metric) if metric == "top1" else None
    size_a, size_b = artifact_bytes(path_a), artifact_bytes(path_b)
    agreement = quality.agreement
    return Comparison(
        machine=_machine(count),
        a=_compared(a, path_a, size_a, best_a, others_a, None if own is None else own.score),
        b=_compared(b, path_b, size_b, best_b, others_b, quality.score),
        size_ratio=size_b / size_a,
        speedup=_speedup(ratio(best_a.latency, best_b.latency)),
        samples=quality.samples,
        metric=metric,
        agreement=r.Agreement(
            top1=agreement.top1, cosine_min=agreement.cosine_min, sqnr_db=agreement.sqnr_db
        ),
        outputs=watched.differences(),
        latency_at=_latency_at(sample, count),
    )


def measure(
    folder: str | Path,
    *,
    threads: int | None = None,
    rounds: int = ROUNDS,
    progress: Progress = lambda stage, done, total: None,
) -> Remeasured:
    """Measure again, on this machine and with the saved settings, what a folder holds; on random inputs.

    The original is measured beside it where the file that the report names, with the same bytes, lies beside
    the folder or in it.

    Args:
        folder: what ``fewbits compress`` wrote.
        threads: of one inference; those it was measured with where None.
        rounds: of measuring, in which every contestant has its turn.
        progress: told of what goes on.

    Raises:
        InputError: the folder was not written by fewbits, or its file is missing.
        EngineError: the saved file cannot be run here, such as at a precision that this CPU lacks.
    """
    progress("load", 0, 0)
    folder = Path(folder)
    path, settings = saved(folder)
    report = r.Report.from_json((folder / REPORT).read_bytes())
    candidate = report.shown
    assert candidate is not None  # `saved` refuses a report without one
    if threads is not None:
        settings = replace(settings, threads=threads)
    get(settings.engine)
    original, missing = _original(folder, report)
    info = open_model(path if original is None else original).info
    sample = _sample(folder, report, info)

    runners = [_Runner("saved", path, (settings,))]
    if original is not None:
        runners.append(_Runner("original", original, _settings(None, tuple(available()), settings.threads)))
    (now, *_), *rest = _race(runners, sample, rounds, progress)
    beside = rest[0][0] if rest else None
    p50 = candidate.latency_ms.p50
    reference = report.reference_candidate
    return Remeasured(
        path=str(folder),
        candidate=candidate.name,
        file=path.name,
        size_bytes=artifact_bytes(path),
        unchanged=_sha256(path) == candidate.sha256,
        now=now.timing(),
        then=_timing_then(candidate),
        times_then=None if p50 is None else p50 / now.latency.p50_ms,
        original_now=None if beside is None else beside.timing(),
        original_then=None if reference is None else _timing_then(reference),
        original_missing=missing,
        speedup_now=None if beside is None else _speedup(ratio(beside.latency, now.latency)),
        speedup_then=_speedup_then(candidate, report.tie_band),
        machine_now=_machine(settings.threads),
        machine_then=report.machine,
        latency_at=_latency_at(sample, settings.threads),
    )


@dataclass(frozen=True)
class _Runner:
    """A file and the settings to try it under."""

    name: str
    path: Path
    settings: tuple[EngineSettings, ...]


@dataclass(frozen=True)
class _Raced:
    """A file under one of them, measured."""

    settings: EngineSettings
    latency: Latency

    def timing(self) -> Timing:
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


def _race(runners: Sequence[_Runner], sample: Feeds, rounds: int, progress: Progress) -> list[list[_Raced]]:
    """Measure every runner under all of its settings side by side; for each, the fastest comes first."""
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
        raced = [_Raced(s, measured[runner.name, s]) for s in runner.settings]
        raced.sort(key=lambda one: float("inf") if one.latency.error else one.latency.p50_ms)
        if raced[0].latency.error:
            errors = "; ".join(one.latency.error or "" for one in raced)
            raise EngineError(f"{runner.path}: no engine here can run it as asked: {errors}")
        found.append(raced)
    return found


def _resolve(given: Path) -> tuple[Path, EngineSettings | None]:
    """The model file of a path, and the settings it was saved with where the path is a folder."""
    return saved(given) if given.is_dir() else (given, None)


def _settings(
    pinned: EngineSettings | None, engines: Sequence[str], threads: int
) -> tuple[EngineSettings, ...]:
    if pinned is not None:
        get(pinned.engine)
        return (replace(pinned, threads=threads),)
    return tuple(EngineSettings(engine, "f32", threads) for engine in engines)


def _session(path: Path, raced: _Raced) -> Session:
    return get(raced.settings.engine).compile(path, raced.settings)


def _common(a: Path, b: Path, info_a: ModelInfo, info_b: ModelInfo) -> tuple[TensorInfo, ...]:
    """The inputs that both take; an axis has a size where one of them fixes it.

    Raises:
        InputError: inputs or outputs that differ in name, dtype or size.
    """
    by_name = {info.name: info for info in info_b.inputs}
    merged = [_merge(one, by_name.get(one.name)) for one in info_a.inputs]
    inputs = tuple(one for one in merged if one is not None)
    outputs = [_merge(x, y) for x, y in zip(info_a.outputs, info_b.outputs, strict=False)]
    for what, same, of_a, of_b in (
        ("inputs", len(inputs) == len(info_a.inputs) == len(info_b.inputs), info_a.inputs, info_b.inputs),
        (
            "outputs",
            None not in outputs and len(info_a.outputs) == len(info_b.outputs),
            info_a.outputs,
            info_b.outputs,
        ),
    ):
        if not same:
            raise InputError(
                f"{a} and {b} cannot be compared, because their {what} differ: {', '.join(map(str, of_a))} in "
                f"the first, {', '.join(map(str, of_b))} in the second; names, dtypes and sizes must be the same"
            )
    return inputs


def _merge(a: TensorInfo, b: TensorInfo | None) -> TensorInfo | None:
    """What fits both; None where nothing does. Without a shape (of an output) anything fits."""
    if b is None or (a.name, a.dtype) != (b.name, b.dtype):
        return None
    if not a.shape or not b.shape:
        return a if a.shape else b
    if len(a.shape) != len(b.shape):
        return None
    dims: list[Dim] = []
    for x, y in zip(a.shape, b.shape, strict=True):
        if isinstance(x, int) and isinstance(y, int) and x != y:
            return None
        dims.append(y if isinstance(x, str) else x)
    return TensorInfo(a.name, a.dtype, tuple(dims))


class _Watched:
    """Runs B, and adds up how far each output lies from A's for the same batch."""

    def __init__(self, session: Session, expected: Iterator[list[np.ndarray]], names: Sequence[str]) -> None:
        self._session, self._expected = session, expected
        self._sums = {name: _Sums() for name in names}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._session.run(feeds)
        for (name, sums), a, b in zip(
            self._sums.items(), next(self._expected), outputs.values(), strict=True
        ):
            if a.shape != b.shape:
                raise InputError(
                    f"output {name!r} has shape {list(a.shape)} in A and {list(b.shape)} in B; only outputs of "
                    "the same shape can be compared"
                )
            sums.add(a.astype(np.float64), b.astype(np.float64))
        return outputs

    def differences(self) -> tuple[OutputDifference, ...]:
        return tuple(sums.difference(name) for name, sums in self._sums.items())


class _Sums:
    """Running sums over the values of one output."""

    def __init__(self) -> None:
        self.elements = self.finite = self.not_finite = 0
        self.magnitude = self.total = self.largest = 0.0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        both = np.isfinite(a) & np.isfinite(b)
        equal = (a == b) | (np.isnan(a) & np.isnan(b))
        differences = np.abs(b[both] - a[both])
        self.elements += a.size
        self.finite += differences.size
        self.not_finite += int((~both & ~equal).sum())
        self.magnitude += float(np.abs(a[both]).sum())
        self.total += float(differences.sum())
        self.largest = max(self.largest, float(differences.max(initial=0.0)))

    def difference(self, name: str) -> OutputDifference:
        finite = self.finite
        return OutputDifference(
            name=name,
            elements=self.elements,
            mean_abs=self.magnitude / finite if finite else None,
            mean_difference=self.total / finite if finite else None,
            max_difference=self.largest if finite else None,
            not_finite=self.not_finite,
        )


def _compared(
    given: str | Path, file: Path, size: int, best: _Raced, others: Sequence[_Raced], scored: float | None
) -> Compared:
    return Compared(
        path=str(given),
        file=str(file),
        size_bytes=size,
        timing=best.timing(),
        others=tuple(one.timing() for one in others),
        score=scored,
    )


def _speedup(found: Ratio) -> Speedup:
    return Speedup(value=found.value, low=found.low, high=found.high, tie=found.tie)


def _speedup_then(candidate: r.Candidate, band: float) -> Speedup | None:
    value = candidate.speedup
    if value is None:
        return None
    tie = 1 / (1 + band) <= value <= 1 + band
    return Speedup(value=value, low=candidate.speedup_low, high=candidate.speedup_high, tie=tie)


def _timing_then(candidate: r.Candidate) -> Timing:
    return Timing(
        engine=candidate.engine,
        precision=candidate.precision or "f32",
        threads=candidate.threads or 1,
        activation_group_size=int(candidate.settings.get("activation_group_size", "0")),
        latency_ms=candidate.latency_ms,
        load_ms=candidate.load_ms,
        resident_bytes=candidate.resident_bytes,
        error=candidate.error,
    )


def _original(folder: Path, report: r.Report) -> tuple[Path | None, str | None]:
    """The model that was compressed, where it is still at hand; or why it is not."""
    name = report.source.path
    if name is None:
        return None, "The report does not name the original, so it was not measured beside it."
    for place in (folder.absolute().parent, folder):
        path = place / Path(name).name
        if path.is_file() and open_model(path).sha256 == report.source.sha256:
            return path, None
    return None, f"The original was not measured: {name}, as it was, lies neither beside {folder} nor in it."


def _sample(folder: Path, report: r.Report, info: ModelInfo) -> Feeds:
    """Random inputs of the shapes that were measured, which the report's ``latency_at`` spells out."""
    concrete = []
    for one in info.inputs:
        found = re.search(rf"(?:^|, ){re.escape(one.name)} ([\dx]*), ", report.latency_at or "")
        if found is None:
            raise InputError(
                f"{folder / REPORT}: does not say with what shape of the input {one.name!r} it was measured; "
                "compress again"
            )
        shape = tuple(int(size) for size in found[1].split("x") if size)
        concrete.append(TensorInfo(one.name, one.dtype, shape))
    feeds, _ = next(synthetic(replace(info, inputs=tuple(concrete)), seed=0).open())
    return feeds


def _machine(threads: int) -> r.Machine:
    machine = cpu()
    return r.Machine(
        cpu=machine.name,
        isa=machine.isa,
        threads=threads,
        cores=machine.physical_cores,
        engines={name: engine.version for name, engine in available().items()},
    )


def _latency_at(sample: Feeds, threads: int) -> str:
    shapes = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in sample.items())
    return f"{shapes}, {threads} thread{'s' if threads > 1 else ''}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for file in artifact_files(path):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _faster(one: str, other: str, speedup: Speedup) -> str:
    from fewbits.report import words

    interval = f"{words.times(speedup.low)} to {words.times(speedup.high)}"
    if speedup.tie:
        return f"{one} is as fast as {other}, within 3 % ({interval})"
    return f"{one} is {words.times(speedup.value)} as fast as {other} ({interval})"


def _agreement(agreement: r.Agreement, samples: int, metric: str) -> str:
    from fewbits.report import words

    parts = []
    if agreement.top1 is not None and metric != "cosine":  # else the output does not look like classes
        parts.append(f"the same largest output on {words.share(agreement.top1, 2)}")
    parts.append(f"smallest cosine {words.number(agreement.cosine_min, 6)}")
    parts.append(
        "no difference in energy" if agreement.sqnr_db is None else f"SQNR {words.decibel(agreement.sqnr_db)}"
    )
    return f"Outputs of {words.count(samples)} samples: {', '.join(parts)}."


def _spread(latency: r.Latency) -> str:
    from fewbits.report import words

    decimals = words.decimals_for([latency.p10])
    return f"{words.number(latency.p10, decimals)} to {words.number(latency.p90, decimals)}"


def _short(value: float | None) -> str:
    from fewbits.report import words

    return words.NOTHING if value is None else f"{value:.3g}"


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for head in left:
        table.add_column(head)
    for head in right:
        table.add_column(head, justify="right", no_wrap=True)
    return table
