"""Two files side by side: size, speed, outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits.contest import (
    Progress,
    Raced,
    Runner,
    Speedup,
    Timing,
    race,
    settings_to_try,
    speedup_of,
    spelled_out,
    spread,
)
from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, Session, engines_for, get, installed
from fewbits.errors import InputError
from fewbits.feeding import Feeding
from fewbits.loaded import saved
from fewbits.machine import this_machine, versions
from fewbits.measure.latency import ROUNDS, ratio
from fewbits.measure.quality import Reference, score
from fewbits.measure.size import artifact_bytes
from fewbits.models.model import open_model
from fewbits.planning.model_info import Dim, ModelInfo, TensorInfo
from fewbits.report import record as r
from fewbits.report.record import Count, Number, Record
from fewbits.samples import open_samples
from fewbits.scoring import Wish, metric_for
from fewbits.tables import plain_table, short

if TYPE_CHECKING:
    from rich.console import Console

BATCH = 32


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

        table = plain_table(("", "engine"), ("size", "median", "p10 to p90", "load", "memory", self.metric))
        for name, side in (("A", self.a), ("B", self.b)):
            timing = side.timing
            row = (
                name,
                f"{timing.engine} {timing.precision}",
                words.size(side.size_bytes),
                words.milliseconds(timing.latency_ms.p50),
                spread(timing.latency_ms),
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
        outputs = plain_table(("output",), ("values", "mean |A|", "mean |B-A|", "max |B-A|", "not finite"))
        for one in self.outputs:
            numbers = (one.mean_abs, one.mean_difference, one.max_difference)
            cells = (words.shortened(one.name, 36), words.count(one.elements), *map(short, numbers))
            outputs.add_row(*map(Text, (*cells, words.count(one.not_finite))))
        console.print(outputs)
        for name, side in (("A", self.a), ("B", self.b)):
            for timing in side.others:
                what = timing.error or words.milliseconds(timing.latency_ms.p50)
                console.print(Text(f"{name} in {timing.engine} {timing.precision}: {what}", style="dim"))
        console.print(Text(f"latency at {self.latency_at}; {self.machine.cpu}", style="dim"))


def compare(
    a: str | Path,
    b: str | Path,
    data: object,
    *,
    batch_axis: Mapping[str, int] | None = None,
    state: Mapping[str, str] | None = None,
    engine: str = "auto",
    threads: int | None = None,
    rounds: int = ROUNDS,
    progress: Progress = lambda stage, done, total: None,
) -> Comparison:
    """Put two models side by side: bytes, latency measured in turn, and their outputs on the same samples.

    Args:
        a, b: ``.onnx`` or ``.tflite`` files, which run in float32 in the engine that runs them fastest; or folders that
            ``fewbits compress`` wrote, whose file runs as it was saved, in its engine and at its precision.
        data: samples, as :func:`fewbits.compress.compress` takes them; with labels both are scored.
        batch_axis, state: as :func:`fewbits.compress.compress` takes them.
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
    model_a, model_b = open_model(path_a), open_model(path_b)
    engines_a, engines_b = (tuple(engines_for(model.format, engine)) for model in (model_a, model_b))
    inputs = _common(Path(a), Path(b), model_a.info, model_b.info)
    feeding = Feeding(batch_axis or {}, state or {})
    feeding.check(replace(model_a.info, inputs=inputs))
    samples = open_samples(data, inputs, feeding=feeding)
    sample = samples.one_run()

    runners = [
        Runner("A", path_a, settings_to_try(saved_a, engines_a, count)),
        Runner("B", path_b, settings_to_try(saved_b, engines_b, count)),
    ]
    (best_a, *others_a), (best_b, *others_b) = race(runners, sample, rounds, progress)

    progress("outputs", 0, 0)
    session_a, session_b = _session(path_a, best_a), _session(path_b, best_b)
    # Outputs that are NaN or infinite are counted; NumPy need not warn of them.
    quiet = np.errstate(divide="ignore", invalid="ignore")
    with tempfile.TemporaryDirectory(prefix="fewbits-compare-") as folder, quiet:
        reference = Reference(Path(folder))
        batch = samples.batch or BATCH
        reference.record(samples.session(session_a), samples, batch)
        metric, subject = metric_for(Wish(), samples, reference)
        names = samples.results(session_a.output_names)
        watched = _Watched(samples.session(session_b), iter(reference), names)
        quality = score(watched, samples, batch, reference, metric.scorer(subject))
        own = None
        if subject.against == "labels":
            own = score(samples.session(session_a), samples, batch, reference, metric.scorer(subject))
    size_a, size_b = artifact_bytes(path_a), artifact_bytes(path_b)
    agreement = quality.agreement
    return Comparison(
        machine=this_machine(cpu(), count, versions(installed())),
        a=_compared(a, path_a, size_a, best_a, others_a, None if own is None else own.score),
        b=_compared(b, path_b, size_b, best_b, others_b, quality.score),
        size_ratio=size_b / size_a,
        speedup=speedup_of(ratio(best_a.latency, best_b.latency)),
        samples=quality.samples,
        metric=metric.name,
        agreement=r.Agreement(
            top1=agreement.top1, cosine_min=agreement.cosine_min, sqnr_db=agreement.sqnr_db
        ),
        outputs=watched.differences(),
        latency_at=spelled_out(sample, count),
    )


def _resolve(given: Path) -> tuple[Path, EngineSettings | None]:
    """The model file of a path, and the settings it was saved with where the path is a folder."""
    return saved(given) if given.is_dir() else (given, None)


def _session(path: Path, raced: Raced) -> Session:
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
        for (name, sums), a in zip(self._sums.items(), next(self._expected), strict=True):
            b = outputs[name]
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
    given: str | Path, file: Path, size: int, best: Raced, others: Sequence[Raced], scored: float | None
) -> Compared:
    return Compared(
        path=str(given),
        file=str(file),
        size_bytes=size,
        timing=best.timing(),
        others=tuple(one.timing() for one in others),
        score=scored,
    )


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
