"""The main job: load, observe, plan, apply, write, measure, choose, report; readable from top to bottom."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbits.candidates import Candidate, Draft, Written, candidates, drafts, in_framework, resolve
from fewbits.checkpoint import is_checkpoint, open_job, run_job
from fewbits.choose import PREFERENCES, Choice, Limits, Measured, Prefer, choose, parse_drop, parse_size
from fewbits.decide import decide
from fewbits.describe import describe
from fewbits.engines.cpu import Cpu, cpu
from fewbits.engines.engine import FORMATS, Engine, EngineSettings, engines_for, get, reads, yardstick
from fewbits.errors import EngineError, InputError
from fewbits.fallback import Attempt, Fallback, fall_back, losing
from fewbits.feeding import PLAIN, Feeding, Feeds
from fewbits.figures import Figures, Outcome
from fewbits.handover import check_place, replacing
from fewbits.loaded import Loaded, load, wrapped
from fewbits.measure.latency import Contestant, measure_latency
from fewbits.measure.quality import MetricName, Reference, score
from fewbits.measure.size import artifact_bytes
from fewbits.models.model import Model, open_model
from fewbits.observe import observe
from fewbits.origin import Origin
from fewbits.planning.plan import Placement
from fewbits.planning.recipe import Recipe, ResolvedRecipe, assign
from fewbits.planning.stats import Stats
from fewbits.samples import Samples, open_samples, synthetic
from fewbits.sensitivity import sensitivity
from fewbits.source import Arch, open_source
from fewbits.threads import one_torch_thread
from fewbits.verify import Checker

if TYPE_CHECKING:
    from torch import nn

    from fewbits.report.record import Report

SCORING_BATCH = 32
CLOSE = 1.1  # candidates up to a tenth slower than the fastest are measured twice as long
CHECKED_SAMPLES = 8  # are run through every written file and held against the plan's own arithmetic

Progress = Callable[[str, int, int], None]
"""Called with a stage, the steps done in it, and the steps in all (0 where that is not known)."""

Evaluate = Callable[[Loaded], float]


@dataclass(frozen=True)
class Asked:
    """What the user asked of the result, as written."""

    max_drop: str | float = "1%"
    max_size: str | float | None = None
    min_speedup: float | None = None
    prefer: Prefer = "speed"


@dataclass(frozen=True)
class Run:
    """What every stage of one run needs; ``timings`` and ``notes`` grow as it goes."""

    model: Model
    folder: Path
    cpu: Cpu
    engines: Mapping[str, Engine]
    threads: int
    seed: int
    calibration: Samples | None
    scoring: Samples
    sample: Feeds
    evaluate: Evaluate | None
    progress: Progress
    origin: Origin | None = None
    feeding: Feeding = PLAIN
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is inside under that name."""
        start = time.perf_counter()
        self.progress(name, 0, 0)
        yield
        self.timings[name] = time.perf_counter() - start


@dataclass(frozen=True)
class Scoring:
    """What every candidate is scored against, and how."""

    reference: Reference
    metric: MetricName


@dataclass(frozen=True)
class Result:
    """What the main job found.

    Attributes:
        report: everything measured, and the choice.
        folder: where the files are: the artifact, ``report.html``, ``report.json``, ``recipe.toml``, ``run.py``.
    """

    report: Report
    folder: Path

    @property
    def met(self) -> bool:
        """A candidate meets every limit."""
        return self.report.chosen is not None

    @property
    def model(self) -> Loaded:
        """The saved model, with the same inputs and outputs as the one that came in; for a module, a module."""
        return load(self.folder)

    def save(self, out: str | Path) -> Path:
        """Copy the folder to ``out``, which must be new or written by fewbits before; it is replaced as a whole."""
        with replacing(Path(out)) as place:
            shutil.copytree(self.folder, place, dirs_exist_ok=True)
        return Path(out)

    def __str__(self) -> str:
        from fewbits.report.terminal import text

        return text(self.report, str(self.folder / "report.html"))


def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    arch: Arch | None = None,
    format: str = "auto",
    eval: Any = None,
    evaluate: Evaluate | None = None,
    batch_axis: Mapping[str, int] | None = None,
    state: Mapping[str, str] | None = None,
    recipe: str = "auto",
    engine: str = "auto",
    max_drop: str | float = "1%",
    max_size: str | float | None = None,
    min_speedup: float | None = None,
    prefer: Prefer = "speed",
    exclude: Sequence[str] = (),
    threads: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Hand back the same model in fewer bits, with proof: measured in the runtime that will run it.

    Args:
        model: path of an ``.onnx`` or ``.tflite`` file; or what is exported to one first: a Keras model or the path of
            a ``.keras`` file; an ``nn.Module``, ``module:factory`` (what to import and call), or the path of a
            ``.safetensors`` with ``arch``. Or a Hugging Face directory, whose weights are written in fewer bits without
            running anything: of the arguments only ``recipe``, ``exclude``, ``max_size``, ``threads``, ``seed``,
            ``out`` and ``progress`` are for it.
        arch: what makes the module that a ``.safetensors`` has the weights of: ``module:factory``, or a callable.
        format: of the files to write: ``onnx``, ``tflite``, or ``auto``: that of the file given; ``tflite`` for a Keras
            model, ``onnx`` for a module; or what ``engine`` runs.
        data: calibration samples: an ``.npz``, arrays, or batches (see :func:`fewbits.samples.open_samples`).
        eval: samples to score with, with ``labels`` where the score is top-1; else a part of ``data`` is kept for it.
        evaluate: gives a score, higher is better, for a callable model; takes the place of the built-in metric.
        batch_axis: of inputs that the data has one of for each sample, but that the model does not take one after the
            other along its first axis: along which. What is the same for all samples (a scalar, or an input whose first
            axis is not its batch) is given whole, and needs no axis.
        state: by output, the input of the next step that it feeds. Samples are then steps in their order, run one by
            one; a new sequence starts where the number in the data's array ``sequence`` changes. It starts with zeros,
            or with what the data has for that input.
        recipe: ``auto``, a preset, ``original``, or the path of a recipe in TOML.
        engine: ``auto`` for all that are installed, or one of them.
        max_drop: largest loss: ``"1%"`` of the original's score, or a number in the metric's unit.
        max_size: largest file: ``"25%"`` of the original, ``"20MB"``, or bytes.
        min_speedup: against the original in float32 in its fastest engine.
        prefer: what decides among those that meet the limits: ``speed``, ``size`` or ``quality``.
        exclude: patterns of layer names or operators to keep in float.
        threads: of one inference; the usable physical cores where None.
        seed: of everything drawn at random.
        out: folder for the result; a temporary one where None (then ``Result.save``).
        progress: told of what goes on.

    Raises:
        InputError: something the user gave is wrong; nothing is written.
        VerificationError: a written file does not hold what was planned; nothing is handed over.
    """
    asked = Asked(max_drop, max_size, min_speedup, prefer)
    _check(asked, engine, format, threads, seed)
    feeding = Feeding(dict(batch_axis or {}), dict(state or {}))
    if is_checkpoint(model):
        _refuse(
            model,
            data=data is not None,
            eval=eval is not None,
            evaluate=evaluate is not None,
            arch=arch is not None,
            format=format != "auto",
            batch_axis=bool(batch_axis),
            state=bool(state),
            engine=engine != "auto",
            max_drop=max_drop != "1%",
            min_speedup=min_speedup is not None,
            prefer=prefer != "speed",
        )
        where = None if out is None else Path(out)
        job = open_job(Path(str(model)), recipe, exclude, max_size, threads, seed, where, progress)
        place = _place(out)
        report = run_job(job, place, progress)
        return Result(report, place)
    if out is not None:
        check_place(Path(out))
    recipes = resolve(recipe, exclude)
    with tempfile.TemporaryDirectory(prefix="fewbits-") as scratch:
        start = time.perf_counter()
        to = _format(format, engine)
        path, origin = open_source(model, arch, data, eval, Path(scratch), progress, feeding, to)
        exporting = time.perf_counter() - start
        run = _begin(
            path, data, eval, evaluate, engine, threads, seed, Path(scratch), progress, origin, feeding
        )
        if origin is not None:
            run.timings["export"] = exporting
        planned, passed_over = drafts(
            recipes, run.model.info, run.engines, run.cpu, run.calibration is not None
        )
        if recipes and len(passed_over) == len(recipes):
            raise InputError(passed_over[0])
        run.notes.extend(passed_over)

        stats = _observe(run, planned)
        written = _write(run, planned, stats)
        tried = _candidates(run, written, recipes)
        scoring, scored = _score(run, tried)
        resolved = any(one.engine is not None for one in recipes)  # to be made again as it was
        fallbacks = [] if resolved else _fall_back(run, scored, scoring, stats, asked)
        scored += [one.last for one in fallbacks]
        outcomes = _verify(run, _measure(run, scored))  # a file that crashes its engine does so in a worker
        figures = Figures(outcomes)
        choice, limits = _choose(run, outcomes, figures, asked)

        place = _place(out)
        with replacing(place) as folder:
            report = describe(
                run, outcomes, fallbacks, figures, choice, limits, asked, scoring.metric, folder
            )
        return Result(report, place)


def _refuse(model: Any, **given: bool) -> None:
    """Raise for the first argument given that is about running a model."""
    for name in (name for name, is_given in given.items() if is_given):
        raise InputError(
            f"{model}: a Hugging Face directory is written without being run, so {name} says nothing here; leave it out"
        )


def _place(out: str | Path | None) -> Path:
    """Where the result goes: a temporary folder where the user names none."""
    return Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="fewbits-result-")) / "result"


def _check(asked: Asked, engine: str, format: str, threads: int | None, seed: int) -> None:
    """Refuse arguments that no model could make right, before anything takes time."""
    if asked.prefer not in PREFERENCES:
        raise InputError(f"prefer is {asked.prefer!r}; allowed are {', '.join(PREFERENCES)}")
    if asked.min_speedup is not None and not 0 <= asked.min_speedup < float("inf"):
        raise InputError(f"min_speedup is {asked.min_speedup}; give a number such as 1.5")
    parse_drop(asked.max_drop, 100.0)
    parse_size(asked.max_size, 1)
    if format not in ("auto", *FORMATS):
        raise InputError(f"format is {format!r}; allowed are auto, {', '.join(FORMATS)}")
    if engine != "auto" and format not in ("auto", reads(engine)):
        raise InputError(
            f"engine {engine!r} runs .{reads(engine)} files, and format is {format!r}; leave one out"
        )
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; give 1 or more")
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")


def _format(format: str, engine: str) -> str:
    """What was asked for, in so many words or by the engine; ``auto`` where it was not."""
    return reads(engine) if format == "auto" != engine else format


def _begin(
    path: Path,
    data: Any,
    eval: Any,
    evaluate: Evaluate | None,
    engine: str,
    threads: int | None,
    seed: int,
    scratch: Path,
    progress: Progress,
    origin: Origin | None = None,
    feeding: Feeding = PLAIN,
) -> Run:
    """Open the model, the data and the engines, and check each against the others."""
    start = time.perf_counter()
    progress("load", 0, 0)
    model = open_model(path)
    feeding.check(model.info)
    notes = [] if origin is None else list(origin.notes)
    if in_codes := model.info.in_codes:
        notes.append(f"left as they came, in integer codes: {in_codes} layer{'s' if in_codes > 1 else ''}")
    inputs = model.info.inputs
    calibration = None if data is None else open_samples(data, inputs, feeding=feeding)
    if eval is not None:
        scoring = open_samples(eval, inputs, "eval", feeding)
    elif calibration is not None:
        calibration, scoring = calibration.split()
        notes.append(f"scored on {scoring.part} of the data, which was kept from calibration")
    else:
        scoring = synthetic(model.info, seed, feeding=feeding)
        notes.append(
            "no data was given: agreement on random inputs says little; give --data, or --eval with labels"
        )
    for output, name in feeding.state.items():
        notes.append(
            f"run as sequences, {output!r} of each step as {name!r} of the next; latency is that of one step"
        )
    if calibration is not None:
        calibration.first()
    sample = scoring.one_run()
    machine = cpu()
    run = Run(
        model,
        scratch,
        machine,
        engines_for(model.format, engine),
        threads or machine.physical_cores,
        seed,
        calibration,
        scoring,
        sample,
        evaluate,
        progress,
        origin,
        feeding,
        notes=notes,
    )
    run.timings["load"] = time.perf_counter() - start
    return run


def _observe(run: Run, planned: Sequence[Draft]) -> Stats | None:
    """Stream the calibration data through the float model once, for every file that gains by it."""
    wanted = [run.model.wanted(draft.assigned, draft.target) for draft in planned if draft.recipe.uses_data]
    if not wanted or run.calibration is None:
        return None
    with run.stage("observe"), one_torch_thread():
        tensors = list(dict.fromkeys(name for one in wanted for name in one.tensors))
        path = run.folder / f"observed.{run.model.format}"
        run.model.tapped(tensors, path)
        engine = yardstick(run.model.format)
        compiled = engine.compile(path, EngineSettings(engine.name, "f32", run.threads))
        session = run.calibration.session(compiled)
        rows = {name for one in wanted for name in one.rows}
        samples = {name for one in wanted for name in one.samples}

        def progress(done: int) -> None:
            run.progress("observe", done, 0)

        return observe(session, run.calibration, tensors, rows, samples, run.calibration.batch, progress)


def _write(run: Run, planned: Sequence[Draft], stats: Stats | None) -> list[Written]:
    """Decide, write and read back every draft."""
    written: list[Written] = []
    placed: set[tuple[str, str, Placement]] = set()
    with run.stage("write"):
        for number, draft in enumerate(planned):
            run.progress("write", number, len(planned))
            placement = run.model.place(draft.assigned, draft.target)
            which = (draft.recipe.name, draft.target.engine, placement)
            if which in placed:  # two of the engine's placements come to the same in this model
                continue
            placed.add(which)
            file = _written(run, draft, stats, run.folder / str(number))
            if file is None:
                run.notes.append(f"recipe {draft.recipe.name!r}: every layer is too small to gain anything")
            else:
                written.append(file)
    return written


def _written(run: Run, draft: Draft, stats: Stats | None, folder: Path) -> Written | None:
    """The draft as a file in a new folder; None where no layer gains anything by it."""
    with one_torch_thread():
        placement = run.model.place(draft.assigned, draft.target)
        plan = decide(draft.recipe, draft.assigned, placement, stats, draft.target, run.model.weight)
    if not plan.weights:
        return None
    folder.mkdir(exist_ok=True)
    path = folder / run.model.artifact_name
    run.model.write(plan, path)
    return Written(path, draft, plan, run.model.read_back(path, plan))


def _candidates(
    run: Run, written: Sequence[Written], recipes: Sequence[ResolvedRecipe]
) -> tuple[Candidate, ...]:
    """The original and every file, at every precision of the engines; or as a resolved recipe pins it."""
    precisions = {name: engine.precisions(run.cpu) for name, engine in run.engines.items()}
    original = Written(run.model.path, None, None, run.model.bytes_by_dtype())
    tried = candidates(original, written, run.engines, precisions, run.threads)
    if (origin := run.origin) is not None and origin.program is not None:
        offered = get(origin.framework).precisions(run.cpu)
        tried += in_framework(origin.program, origin.framework, offered, run.threads)
    pinned = recipes[0].precision if len(recipes) == 1 else None
    return tuple(one for one in tried if one.is_original or pinned in (None, one.settings.precision))


def _score(run: Run, tried: Sequence[Candidate]) -> tuple[Scoring, list[Outcome]]:
    """Run every candidate over the scoring samples, against the original's outputs in float32."""
    with run.stage("score"):
        reference = _reference(run, tried, run.scoring.batch or SCORING_BATCH)
        scoring = Scoring(reference, reference.metric(run.scoring.has_labels()))
        outcomes = []
        for number, one in enumerate(tried):
            run.progress("score", number, len(tried))
            outcomes.append(_scored(run, one, scoring))
    return scoring, outcomes


def _scored(run: Run, candidate: Candidate, scoring: Scoring) -> Outcome:
    try:
        compiled = get(candidate.settings.engine).compile(candidate.file.path, candidate.settings)
        batch = run.scoring.batch or SCORING_BATCH
        quality = score(run.scoring.session(compiled), run.scoring, batch, scoring.reference, scoring.metric)
        value = quality.score if run.evaluate is None else _evaluated(run, run.evaluate, candidate)
        return Outcome(candidate, quality=quality, score=value)
    except EngineError as error:
        return Outcome(candidate, error=str(error))


def _fall_back(
    run: Run, scored: Sequence[Outcome], scoring: Scoring, stats: Stats | None, asked: Asked
) -> list[Fallback]:
    """Where static files lose more than is allowed, raise their layers until one does not."""
    original = next(
        (one.score for one in scored if one.candidate.is_original and one.score is not None), None
    )
    if original is None or stats is None or run.calibration is None:
        return []
    least = original - parse_drop(asked.max_drop, original)
    found: list[Fallback] = []
    with run.stage("fall back"):
        for start in losing(scored, least):
            place = run.folder / f"raised-{len(found)}"
            place.mkdir()

            def progress(done: int, total: int) -> None:
                run.progress("fall back", done, total)

            with one_torch_thread():
                errors = sensitivity(run.model, start.candidate, stats, run.calibration, place, progress)
            found.append(fall_back(start, errors, _attempts(run, start, scoring, stats, place), least))
    return found


def _attempts(run: Run, start: Outcome, scoring: Scoring, stats: Stats, place: Path) -> Attempt:
    draft = start.candidate.file.draft
    assert draft is not None

    def attempt(recipe: Recipe) -> Outcome:
        file = _written(
            run,
            replace(draft, recipe=recipe, assigned=assign(recipe, run.model.info)),
            stats,
            Path(tempfile.mkdtemp(dir=place)),
        )
        assert file is not None
        name = start.candidate.name.replace(draft.recipe.name, recipe.name, 1)
        return _scored(run, replace(start.candidate, name=name, file=file), scoring)

    return attempt


def _reference(run: Run, tried: Sequence[Candidate], batch: int) -> Reference:
    """The original's outputs in float32, from the first engine that can run it."""
    folder = run.folder / "reference"
    folder.mkdir()
    reference = Reference(folder)
    errors = []
    for one in tried:
        if one.is_original and one.settings.precision == "f32":
            try:
                session = get(one.settings.engine).compile(one.file.path, one.settings)
                reference.record(run.scoring.session(session), run.scoring, batch)
                return reference
            except EngineError as error:
                errors.append(str(error))
    raise InputError(f"{run.model.path}: no engine can run the original: {'; '.join(errors)}")


def _evaluated(run: Run, evaluate: Evaluate, candidate: Candidate) -> float | None:
    structure = None if run.origin is None else run.origin.structure
    inputs = tuple(one.name for one in run.model.info.inputs)
    value = float(evaluate(wrapped(candidate.file.path, candidate.settings, inputs, structure)))
    return value if np.isfinite(value) else None


def _verify(run: Run, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Hold every written file, run in its engine, against the plan's own arithmetic."""
    with run.stage("verify"):
        checker = Checker(run.model, run.scoring, CHECKED_SAMPLES, run.folder)
        checked = []
        for number, outcome in enumerate(outcomes):
            run.progress("verify", number, len(outcomes))
            if outcome.error is None and not outcome.candidate.is_original:
                outcome = replace(outcome, error=checker.difference(outcome.candidate))
            checked.append(outcome)
    return checked


def _measure(run: Run, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Latency of all that can be run, side by side."""
    with run.stage("measure"):
        able = [one.candidate for one in outcomes if one.error is None]
        contestants = [Contestant(one.name, one.file.path, one.settings) for one in able]

        def progress(done: int, total: int, name: str) -> None:
            run.progress("measure", done, total)

        originals = [one.name for one in able if one.is_original]
        latencies = measure_latency(
            contestants, run.sample, seed=run.seed, close=CLOSE, beside=originals, progress=progress
        )
        by_name = {latency.name: latency for latency in latencies}
    measured = []
    for one in outcomes:
        latency = by_name.get(one.candidate.name)
        failed = None if latency is None else latency.error
        measured.append(replace(one, latency=None if failed else latency, error=one.error or failed))
    return measured


def _choose(run: Run, outcomes: Sequence[Outcome], figures: Figures, asked: Asked) -> tuple[Choice, Limits]:
    """Resolve the limits against the original, and choose."""
    limits = Limits(
        parse_drop(asked.max_drop, figures.original_score),
        parse_size(asked.max_size, run.model.size_bytes),
        asked.min_speedup,
    )
    measured = [
        Measured(
            one.candidate.name,
            artifact_bytes(one.candidate.file.path),
            None if one.latency is None else one.latency.p50_ms,
            None if (ratio := figures.speedup(one)) is None else ratio.value,
            figures.drop(one),
            one.error,
            one.candidate.in_framework,
        )
        for one in outcomes
    ]
    return choose(measured, limits, asked.prefer, "" if run.evaluate else " points"), limits
