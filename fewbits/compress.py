"""The main job: load, observe, plan, apply, write, measure, choose, report; readable from top to bottom."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbits.candidates import (
    Candidate,
    Draft,
    Written,
    drafts,
    in_framework,
    in_order,
    originals,
    resolve,
)
from fewbits.checkpoint import is_checkpoint, open_job, run_job
from fewbits.choose import PREFERENCES, Choice, Limits, Measured, Prefer, choose, parse_drop, parse_size
from fewbits.describe import describe
from fewbits.ending import Ending, Say, parse_budget
from fewbits.engines.cpu import Cpu, cpu
from fewbits.engines.engine import FORMATS, Engine, EngineSettings, engines_for, get, reads
from fewbits.errors import InputError
from fewbits.estimate import Estimate, estimate, pace, sample_count
from fewbits.feeding import PLAIN, Feeding, Feeds
from fewbits.figures import Figures, Outcome, unable
from fewbits.handover import check_place, replacing
from fewbits.learn import SPENT
from fewbits.loaded import Loaded, load
from fewbits.measure.latency import Contestant, Latency, measure_latency
from fewbits.measure.size import artifact_bytes
from fewbits.models.model import Model, open_model
from fewbits.notices import unprotected
from fewbits.origin import Origin
from fewbits.planning.recipe import EFFORTS, Effort, ResolvedRecipe
from fewbits.report import words
from fewbits.samples import HELD_OUT_EVERY, Samples, open_samples, synthetic
from fewbits.scoring import Evaluate, Scoring, open_scoring, scored, wished
from fewbits.signatures import (
    Finding,
    Judge,
    Signature,
    judged,
    note,
    open_judges,
    open_signatures,
    split,
)
from fewbits.source import Arch, open_source
from fewbits.throughput import Batches, check_batches, measure_throughput, parse_batches
from fewbits.trying import different, try_in_turn, ways_of
from fewbits.verify import Checker

if TYPE_CHECKING:
    from torch import nn

    from fewbits.report.record import Report

CLOSE = 1.1  # candidates up to a tenth slower than the fastest are measured twice as long
CHECKED_SAMPLES = 8  # are run through every written file and held against the plan's own arithmetic

Progress = Callable[[str, int, int], None]
"""Called with a stage, the steps done in it, and the steps in all (0 where that is not known)."""


@dataclass(frozen=True)
class Asked:
    """What the user asked of the result, as written."""

    max_drop: str | float = "1%"
    max_size: str | float | None = None
    min_speedup: float | None = None
    prefer: Prefer = "speed"


@dataclass(frozen=True)
class Run:
    """What every stage of one run needs; ``timings`` and ``notes`` grow as it goes.

    ``samples`` are about how many there are to calibrate and to score with. ``others`` are the file's signatures beside
    the main one, with samples of their own.
    """

    model: Model
    folder: Path
    cpu: Cpu
    engines: Mapping[str, Engine]
    threads: int
    seed: int
    calibration: Samples | None
    scoring: Samples
    sample: Feeds
    progress: Progress
    origin: Origin | None = None
    feeding: Feeding = PLAIN
    ending: Ending = field(default_factory=Ending)
    samples: tuple[int, int] = (0, 0)
    estimate: Estimate | None = None
    timings: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    effort: Effort = "normal"
    others: tuple[Signature, ...] = ()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is inside under that name; several times under one add up."""
        start = time.perf_counter()
        self.progress(name, 0, 0)
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def precisions(self) -> dict[str, tuple[str, ...]]:
        """What each engine can compute in here."""
        return {name: engine.precisions(self.cpu) for name, engine in self.engines.items()}

    def note(self, lines: Iterable[str]) -> None:
        """Have the report say these, each once."""
        self.notes.extend(line for line in lines if line not in self.notes)

    def reserve(self, scored: int) -> None:
        """Keep time for measuring so many candidates."""
        if self.estimate is not None:
            self.ending.reserved_s = self.estimate.after(scored)


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


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed once; ``result`` holds what had been tried by then, chosen from and written as a whole."""

    def __init__(self, result: Result) -> None:
        super().__init__("interrupted")
        self.result = result


def compress(
    model: str | Path | nn.Module,
    data: Any = None,
    *,
    arch: Arch | None = None,
    format: str = "auto",
    eval: Any = None,
    metric: str | Callable[..., float] | None = None,
    metric_output: str | None = None,
    evaluate: Evaluate | None = None,
    higher_is_better: bool | None = None,
    batch_axis: Mapping[str, int] | None = None,
    state: Mapping[str, str] | None = None,
    recipe: str = "auto",
    engine: str = "auto",
    max_drop: str | float = "1%",
    max_size: str | float | None = None,
    min_speedup: float | None = None,
    prefer: Prefer = "speed",
    exclude: Sequence[str] = (),
    batch: Batches | None = None,
    time_budget: str | float | None = None,
    io: str | None = None,
    float_fallback: bool = False,
    effort: Effort = "normal",
    threads: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Say = lambda line: None,
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
        data: calibration samples: an ``.npz``, arrays, or batches (see :func:`fewbits.samples.open_samples`); by
            signature where a ``.tflite`` has several (see :func:`fewbits.signatures.split`).
        eval: samples to score with, with ``labels`` where the metric needs them; else a part of ``data`` is kept
            for it.
        metric: the score: ``top1``, ``top5``, ``spearman``, ``mse``, ``psnr``, ``cosine``, ``agreement``, or
            ``module:function`` or a function, of outputs and labels (or of the model alone, as ``evaluate``). Where
            None, ``top1`` with labels, without them ``agreement`` or ``cosine`` with the original's outputs.
        metric_output: the name of the output that is scored, where the model has several; else the first, or where
            outputs are compared with the original's, all of them.
        evaluate: gives a score for a callable model; takes the place of a metric.
        higher_is_better: False for a function of one's own of which less is better.
        batch_axis: of inputs that the data has one of for each sample, but that the model does not take one after the
            other along its first axis: along which. What is the same for all samples (a scalar, or an input whose first
            axis is not its batch) is given whole, and needs no axis.
        state: by output, the input of the next step that it feeds. Samples are then steps in their order, run one by
            one; a new sequence starts where the number in the data's array ``sequence`` changes. It starts with zeros,
            or with what the data has for that input.
        recipe: ``auto``, a preset, ``original``, or the path of a recipe in TOML.
        engine: ``auto`` for all that are installed, or one of them.
        max_drop: largest loss: ``"1%"`` of the original's score, or a number in the metric's unit. For ``mse`` and
            ``psnr`` against the original's own outputs, the percentage is of their energy.
        max_size: largest file: ``"25%"`` of the original, ``"20MB"``, or bytes.
        min_speedup: against the original in float32 in its fastest engine.
        prefer: what decides among those that meet the limits: ``speed``, ``size`` or ``quality``.
        exclude: patterns of layer names or operators to keep in float.
        batch: batch sizes to measure throughput at as well: ``8``, ``"1,8,32"`` or ``(1, 8, 32)``.
        time_budget: after which nothing new is tried: ``"90s"``, ``"10m"``, ``"1h"``, or seconds. The most promising
            candidates come first, and what there was no time for is listed in the report.
        io: what a full-integer ``.tflite`` takes and gives: ``float``, or codes as ``int8``, ``uint8`` or (with 16-bit
            activations) ``int16``.
        float_fallback: what a full-integer ``.tflite`` cannot compute on codes stays in float, instead of an error.
        effort: how much time is spent on learning, for recipes that learn: ``fast`` (none), ``normal`` or ``high``.
        threads: of one inference; the usable physical cores where None.
        seed: of everything drawn at random.
        out: folder for the result; a temporary one where None (then ``Result.save``).
        progress: told of what goes on.
        say: told in a line what the time budget will allow, and what Ctrl-C leads to.

    Raises:
        Interrupted: Ctrl-C was pressed when something had been tried already; the result is written, and in it.
        InputError: something the user gave is wrong; nothing is written.
        VerificationError: a written file does not hold what was planned; nothing is handed over.
    """
    asked = Asked(max_drop, max_size, min_speedup, prefer)
    wish = wished(metric, evaluate, higher_is_better, metric_output)
    batches = parse_batches(batch)
    ending = Ending(parse_budget(time_budget), say)
    _check(asked, engine, format, effort, threads, seed)
    feeding = Feeding(dict(batch_axis or {}), dict(state or {}))
    if is_checkpoint(model):
        _refuse(
            model,
            data=data is not None,
            eval=eval is not None,
            metric=metric is not None,
            metric_output=metric_output is not None,
            evaluate=evaluate is not None,
            higher_is_better=higher_is_better is not None,
            io=io is not None,
            float_fallback=float_fallback,
            batch=bool(batches),
            time_budget=time_budget is not None,
            effort=effort != "normal",
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
    recipes = resolve(recipe, exclude, io, float_fallback)
    with tempfile.TemporaryDirectory(prefix="fewbits-") as scratch:
        start = time.perf_counter()
        to = _format(format, engine)
        path, origin = open_source(model, arch, data, eval, Path(scratch), progress, feeding, to)
        exporting = time.perf_counter() - start
        if origin is not None and origin.trained is not None and recipe == "auto":
            recipes = resolve(origin.trained.recipe, exclude, io, float_fallback)
        run = _begin(
            path, data, eval, engine, threads, seed, Path(scratch), progress, origin, feeding, ending
        )
        run = replace(run, effort=next((one.effort for one in recipes if one.effort), effort))
        if origin is not None:
            run.timings["export"] = exporting
        if (static := check_batches(batches, run.scoring, run.sample)) is not None:
            run.notes.append(static)
        planned, passed_over = drafts(
            recipes, run.model.info, run.engines, run.cpu, run.calibration is not None
        )
        if recipes and len(passed_over) == len(recipes):
            raise InputError(passed_over[0])
        run.note(passed_over)
        if run.calibration is None:
            run.note(unprotected(one.recipe for one in recipes))

        as_it_came = _originals(run)
        planned, ways, run = _schedule(run, planned, recipes, as_it_came, asked, batches)
        with run.stage("original"):
            scoring, first = open_scoring(run, wish, as_it_came)
            known = [first if one is first.candidate else scored(run, one, scoring) for one in as_it_came]
            judges = open_judges(run.others, max_drop, CHECKED_SAMPLES)
        if not scoring.original and str(max_drop).strip().endswith("%") and not scoring.allowed(max_drop):
            run.notes.append(
                f"the original's score is 0, of which {max_drop} is nothing: no loss is allowed; a max_drop without % "
                "is in the metric's unit"
            )
        resolved = any(one.engine is not None for one in recipes)  # to be made again as it was
        most = None if resolved else scoring.allowed(max_drop)
        tried = try_in_turn(run, planned, ways, scoring, known, most)
        # A file that crashes its engine does so in a worker: it is measured before it is run here.
        outcomes = _throughput(run, _verify(run, _measure(run, tried.outcomes)), batches)
        outcomes = ending.finishing(lambda: judged(judges, outcomes))
        run.notes.extend(unable(outcomes))
        figures = Figures(outcomes, scoring.metric.higher_is_better)
        choice, limits = _choose(run, outcomes, figures, scoring, asked)
        saved = next((one for one in outcomes if one.candidate.name == choice.saved), None)
        findings = ending.finishing(lambda: tuple(_finding(judge, saved) for judge in judges))

        place = _place(out)

        def hand_over() -> Result:
            with replacing(place) as folder:
                report = describe(
                    run, tried, outcomes, figures, choice, limits, asked, scoring, findings, folder
                )
            return Result(report, place)

        result = ending.finishing(hand_over)
        if ending.interrupted:
            raise Interrupted(result)
        return result


def _refuse(model: Any, **given: bool) -> None:
    """Raise for the first argument given that is about running a model."""
    for name in (name for name, is_given in given.items() if is_given):
        raise InputError(
            f"{model}: a Hugging Face directory is written without being run, so {name} says nothing here; leave it out"
        )


def _place(out: str | Path | None) -> Path:
    """Where the result goes: a temporary folder where the user names none."""
    return Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="fewbits-result-")) / "result"


def _check(asked: Asked, engine: str, format: str, effort: str, threads: int | None, seed: int) -> None:
    """Refuse arguments that no model could make right, before anything takes time."""
    if asked.prefer not in PREFERENCES:
        raise InputError(f"prefer is {asked.prefer!r}; allowed are {', '.join(PREFERENCES)}")
    if asked.min_speedup is not None and not 0 <= asked.min_speedup < float("inf"):
        raise InputError(f"min_speedup is {asked.min_speedup}; give a number such as 1.5")
    parse_drop(asked.max_drop, lambda share: share)
    parse_size(asked.max_size, 1)
    if format not in ("auto", *FORMATS):
        raise InputError(f"format is {format!r}; allowed are auto, {', '.join(FORMATS)}")
    if engine != "auto" and format not in ("auto", reads(engine)):
        raise InputError(
            f"engine {engine!r} runs .{reads(engine)} files, and format is {format!r}; leave one out"
        )
    if effort not in EFFORTS:
        raise InputError(f"effort is {effort!r}; allowed are {', '.join(EFFORTS)}")
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
    engine: str,
    threads: int | None,
    seed: int,
    scratch: Path,
    progress: Progress,
    origin: Origin | None = None,
    feeding: Feeding = PLAIN,
    ending: Ending | None = None,
) -> Run:
    """Open the model, the data and the engines, and check each against the others."""
    start = time.perf_counter()
    progress("load", 0, 0)
    model = open_model(path)
    given = split(model.info, data, eval)
    if given:
        main = given[model.info.signatures[0]]
        data, eval = main.data, main.eval
    feeding.check(model.info)
    notes = [] if origin is None else list(origin.notes)
    if in_codes := model.info.in_codes:
        notes.append(f"left as they came, in integer codes: {in_codes} layer{'s' if in_codes > 1 else ''}")
    if (about := note(model.info)) is not None:
        notes.append(about)
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
        progress,
        origin,
        feeding,
        ending or Ending(),
        _sample_counts(data, eval),
        notes=notes,
    )
    run = replace(run, others=open_signatures(run, given))
    run.timings["load"] = time.perf_counter() - start
    return run


def _sample_counts(data: Any, eval: Any) -> tuple[int, int]:
    """About how many samples there are to calibrate with, and to score with."""
    count = sample_count(data)
    return (count, sample_count(eval)) if eval is not None else (count, -(-count // HELD_OUT_EVERY))


def _originals(run: Run) -> tuple[Candidate, ...]:
    """The original in every engine and precision, those of the framework it came from last."""
    original = Written(run.model.path, None, None, run.model.bytes_by_dtype())
    found = originals(original, run.precisions(), run.threads)
    if (origin := run.origin) is not None and origin.program is not None:
        offered = get(origin.framework).precisions(run.cpu)
        found += in_framework(origin.program, origin.framework, offered, run.threads)
    return found


def _schedule(
    run: Run,
    planned: Sequence[Draft],
    recipes: Sequence[ResolvedRecipe],
    as_it_came: Sequence[Candidate],
    asked: Asked,
    batches: Sequence[int],
) -> tuple[tuple[Draft, ...], list[dict[str, EngineSettings]], Run]:
    """The files in the order in which they are tried, and under what; how long it will take is said first."""
    planned = different(run, planned)
    pinned = recipes[0].precision if len(recipes) == 1 else None
    spent = SPENT[run.effort] if run.calibration is not None else None
    found = estimate(
        pace(as_it_came, run.sample, run.scoring.batch or 1),
        run.model.info,
        planned,
        len(as_it_came) + sum(map(len, ways_of(run, planned, pinned))),
        sum(size != (run.scoring.batch or 1) for size in batches),
        0 if run.calibration is None else run.samples[0],
        run.samples[1],
        0 if spent is None else spent.steps * spent.batch,
    )
    run = replace(run, estimate=found)
    run.reserve(len(as_it_came))
    data_last = found.calibrated > 0 and 0 < run.ending.left_s - run.ending.reserved_s < found.calibrate_s
    run.ending.say(_in_words(found, run.ending.left_s, data_last))
    if data_last and len(recipes) > 1:
        planned = tuple(one if one.recipe.needs_data else one.without_data() for one in planned)
        run.notes.append(
            "calibrating would take longer than there is time: weights are rounded without data where they can be"
        )
    planned = in_order(planned, asked.prefer, data_last)
    return planned, ways_of(run, planned, pinned), run


def _in_words(found: Estimate, left_s: float, data_last: bool) -> str:
    """The estimate in a line; ``left_s`` is infinite where the time is not limited."""
    text = f"about {words.seconds(found.total_s)} for {found.candidates} candidates"
    if found.learned:
        text += f", {words.seconds(found.learned * found.learn_s)} of it to learn"
    if left_s == float("inf"):
        return text
    text += f", of {words.seconds(max(0.0, left_s))} left"
    if data_last:
        return f"{text}; calibrating alone takes about {words.seconds(found.calibrate_s)}: what needs it comes last"
    return text if found.total_s <= left_s else f"{text}: the most promising come first"


def _measure(run: Run, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Latency of all that can be run, side by side."""
    able = [one.candidate for one in outcomes if one.error is None]
    contestants = [Contestant(one.name, one.file.path, one.settings) for one in able]
    as_it_came = [one.name for one in able if one.is_original]

    def progress(done: int, total: int, name: str) -> None:
        run.progress("measure", done, total)

    def measured() -> list[Latency]:
        return measure_latency(
            contestants,
            run.sample,
            seed=run.seed,
            close=CLOSE,
            beside=as_it_came,
            ending=run.ending,
            progress=progress,
        )

    if run.estimate is not None:
        run.ending.reserved_s = run.estimate.finishing(len(able))
    with run.stage("measure"):
        latencies = run.ending.finishing(measured, lambda: len(able) > len(as_it_came))
    by_name = {latency.name: latency for latency in latencies}
    found = []
    for one in outcomes:
        latency = by_name.get(one.candidate.name)
        failed = None if latency is None else latency.error
        found.append(replace(one, latency=None if failed else latency, error=one.error or failed))
    return found


def _verify(run: Run, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Hold every written file, run in its engine, against the plan's own arithmetic."""
    with run.stage("verify"):
        checker = run.ending.finishing(lambda: Checker(run.model, run.scoring, CHECKED_SAMPLES, run.folder))
        checked = []
        for number, one in enumerate(outcomes):
            run.progress("verify", number, len(outcomes))
            if one.error is None and not one.candidate.is_original:
                error = run.ending.finishing(partial(checker.difference, one.candidate))
                one = replace(one, error=error)
            checked.append(one)
    return checked


def _finding(judge: Judge, saved: Outcome | None) -> Finding:
    """What the saved file makes of another signature, timed beside the original's."""
    name = judge.signature.name
    if saved is None or name not in saved.candidate.file.others:
        return Finding(judge)
    mine = replace(saved.candidate, file=saved.candidate.file.others[name])
    part = next((one for one in saved.parts if one.signature == name), None)
    original, now = _measure(judge.signature.run, [judge.original, Outcome(mine)])
    return Finding(judge, part, mine, original.latency, now.latency)


def _throughput(run: Run, outcomes: Sequence[Outcome], batches: Sequence[int]) -> list[Outcome]:
    """Samples per second in larger batches, of all that can be run."""
    if not batches:
        return list(outcomes)
    with run.stage("throughput"):

        def progress(done: int, total: int) -> None:
            run.progress("throughput", done, total)

        found, left = measure_throughput(outcomes, batches, run.scoring, run.seed, run.ending, progress)
    if left:
        run.notes.append(f"no throughput at batch {', '.join(map(str, left))}: the run ended before")
    return found


def _choose(
    run: Run, outcomes: Sequence[Outcome], figures: Figures, scoring: Scoring, asked: Asked
) -> tuple[Choice, Limits]:
    """Resolve the limits against the original, and choose."""
    limits = Limits(
        scoring.allowed(asked.max_drop),
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
            one.unscored,
            tuple(part.failed for part in one.parts if part.failed is not None),
        )
        for one in outcomes
    ]
    return choose(measured, limits, asked.prefer, scoring.metric.unit_of_drops), limits
