"""A saved folder measured again on this machine, next to what its report says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fewbits.contest import (
    Progress,
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
from fewbits.engines.engine import available, get, installed
from fewbits.errors import InputError
from fewbits.feeding import Feeds
from fewbits.handover import REPORT
from fewbits.loaded import saved
from fewbits.machine import this_machine, versions
from fewbits.measure.latency import ROUNDS, ratio
from fewbits.measure.size import artifact_bytes, artifact_sha256
from fewbits.models.model import open_model
from fewbits.planning.model_info import ModelInfo, TensorInfo
from fewbits.report import record as r
from fewbits.report.record import Count, Number, Record
from fewbits.samples import random_feeds
from fewbits.tables import plain_table

if TYPE_CHECKING:
    from rich.console import Console


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
            return f"{words.milliseconds(timing.latency_ms.p50)}  ({spread(timing.latency_ms)})"

        def speedup(one: Speedup | None) -> str:
            if one is None or one.value is None:
                return words.NOTHING
            interval = "" if one.low is None or one.high is None else f"  ({one.low:.2f} to {one.high:.2f})"
            return f"{words.times(one.value)}{interval}"

        engine = self.now.engine
        machines = (self.machine_now, self.machine_then)
        table = plain_table(("", "now", "then"), ())
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

    runners = [Runner("saved", path, (settings,))]
    if original is not None:
        runners.append(
            Runner(
                "original",
                original,
                settings_to_try(None, tuple(available(path.suffix[1:])), settings.threads),
            )
        )
    (now, *_), *rest = race(runners, sample, rounds, progress)
    beside = rest[0][0] if rest else None
    p50 = candidate.latency_ms.p50
    reference = report.reference_candidate
    return Remeasured(
        path=str(folder),
        candidate=candidate.name,
        file=path.name,
        size_bytes=artifact_bytes(path),
        unchanged=artifact_sha256(path) == candidate.sha256,
        now=now.timing(),
        then=_timing_then(candidate),
        times_then=None if p50 is None else p50 / now.latency.p50_ms,
        original_now=None if beside is None else beside.timing(),
        original_then=None if reference is None else _timing_then(reference),
        original_missing=missing,
        speedup_now=None if beside is None else speedup_of(ratio(beside.latency, now.latency)),
        speedup_then=_speedup_then(candidate, report.tie_band),
        machine_now=this_machine(cpu(), settings.threads, versions(installed())),
        machine_then=report.machine,
        latency_at=spelled_out(sample, settings.threads),
    )


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
    if report.source.structure is not None:
        return None, f"The original is a PyTorch module, {name}, and was not measured beside it."
    for place in (folder.absolute().parent, folder):
        path = place / Path(name).name
        if path.is_file() and open_model(path).sha256 == report.source.sha256:
            return path, None
    return None, f"The original was not measured: {name}, as it was, lies neither beside {folder} nor in it."


def _sample(folder: Path, report: r.Report, info: ModelInfo) -> Feeds:
    """Random inputs of the shapes that were measured."""
    concrete = []
    for one in info.inputs:
        shape = report.sample_shapes.get(one.name)
        if shape is None:
            raise InputError(
                f"{folder / REPORT}: does not say with what shape of the input {one.name!r} it was measured; "
                "compress again"
            )
        concrete.append(TensorInfo(one.name, one.dtype, shape))
    return random_feeds(replace(info, inputs=tuple(concrete)), seed=0)
