"""``fewbits train``: a recipe's stages, each one's file measured as the main job measures, and one report."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fewbits import __version__, npz
from fewbits.compress import Result
from fewbits.contest import spelled_out
from fewbits.engines.cpu import cpu
from fewbits.engines.engine import EngineSettings, yardstick
from fewbits.errors import InputError
from fewbits.handover import REPORT, check_place, replacing
from fewbits.machine import this_machine, versions
from fewbits.measure.latency import Contestant, Latency, measure_latency, ratio
from fewbits.measure.quality import Quality, Reference, score
from fewbits.measure.size import artifact_bytes
from fewbits.models.model import Model, open_model
from fewbits.planning.training_recipe import Export, TrainingRecipe, read_training_recipe
from fewbits.report import record as r
from fewbits.report.html import render
from fewbits.samples import open_samples
from fewbits.scoring import BATCH, Wish, metric_for
from fewbits.training.pipeline import Finished, run_stages

Progress = Callable[[str, int, int], None]


def train(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Run a recipe's stages, measure what each gave, and hand over the last one's file with a report.

    What is finished lies in ``OUT.unfinished`` until the end: an interrupted run that is started again goes on behind
    the last whole epoch, and ends where it would have ended.

    Args:
        recipe: a ``.toml``; see :class:`fewbits.planning.training_recipe.TrainingRecipe`.
        out: folder for the result; ``RECIPE-fewbits`` where None.
        threads: of one inference; physical cores where None.
        progress: called with a stage, and what of it is done of how much.

    Raises:
        InputError: a recipe, model or data that are wrong, or what a stage says; nothing but finished stages is kept.
    """
    path = Path(recipe)
    wanted = read_training_recipe(path)
    place = Path(out) if out is not None else Path(f"{path.with_suffix('')}-fewbits")
    check_place(place)
    for given in (wanted.data, wanted.eval):
        if not Path(given).is_file():
            field = "data" if given == wanted.data else "eval"
            raise InputError(
                f"recipe {path}: {field}: {given}: no such file; give an .npz, arrays named like the model's inputs"
            )
    npz.shapes(Path(wanted.eval))  # whether it can be read, before hours of training
    folder = unfinished(place)
    settings = EngineSettings(yardstick("onnx").name, "f32", threads or cpu().physical_cores)

    def begun(original: Finished) -> None:
        _scored([original], wanted.eval, settings, progress)  # what is wrong with the samples is said now

    finished = run_stages(wanted, folder, progress, begun)
    with replacing(place) as made:
        report = _reported(path, wanted, finished, settings, progress, made)
        (made / REPORT).write_text(report.to_json(), encoding="utf-8")
        (made / "report.html").write_text(render(report), encoding="utf-8")
    shutil.rmtree(folder)
    return Result(report, place)


def unfinished(out: Path) -> Path:
    """Where finished stages lie until all are."""
    return out.with_name(f"{out.name}.unfinished")


def _reported(
    path: Path,
    recipe: TrainingRecipe,
    finished: Sequence[Finished],
    settings: EngineSettings,
    progress: Progress,
    folder: Path,
) -> r.Report:
    """Measure every stage's file, and put them into ``folder``."""
    first = open_model(finished[0].path)
    engine, threads = yardstick(first.format), settings.threads
    metric, qualities = _scored(finished, recipe.eval, settings, progress)
    sample = open_samples(recipe.eval, first.info.inputs).one_run()
    latencies = measure_latency(
        [Contestant(one.name, one.path, settings) for one in finished],
        sample,
        progress=lambda done, total, name: progress("measure", done, total),
    )
    last = recipe.stages[-1]
    artifact = last.name if isinstance(last, Export) else Export(kind="export").name
    names = {one.name: f"{one.path.stem}.onnx" for one in finished[:-1]} | {finished[-1].name: artifact}
    for one in finished:
        shutil.copyfile(one.path, folder / names[one.name])
    shutil.copyfile(path, folder / "recipe.toml")
    candidates = tuple(
        _candidate(one, names[one.name], quality, latency, first, qualities[0], latencies[0], metric, threads)
        for one, quality, latency in zip(finished, qualities, latencies, strict=True)
    )
    shapes = {name: array.shape for name, array in sample.items()}
    stages = [
        r.Stage(
            name=one.name,
            kind=one.kind,
            candidate=one.name,
            seconds=round(one.seconds, 3),
            macs=one.macs,
            params=one.parameters,
            sparsity=one.sparsity,
        )
        for one in finished
    ]
    if isinstance(last, Export):
        name = f"{len(recipe.stages)} export"
        stages.append(stages[-1].model_copy(update={"name": name, "kind": "export", "seconds": None}))
    return r.Report(
        fewbits=__version__,
        machine=this_machine(cpu(), threads, versions({engine.name: engine})),
        source=r.Source(
            path=recipe.model,
            size_bytes=first.size_bytes,
            format="pytorch",
            params=finished[0].parameters,
            opset=first.opset,
        ),
        metric=metric,
        chosen=finished[-1].name,
        saved=finished[-1].name,
        reference=finished[0].name,
        verdict=_verdict(candidates, metric),
        candidates=candidates,
        stages=tuple(stages),
        timings_s={one.name: round(one.seconds, 3) for one in finished[1:]},
        latency_at=spelled_out(sample, threads),
        sample_shapes=shapes,
        snippet=settings.snippet(artifact, shapes),
        files=(
            r.File(path=artifact, what="the result", size_bytes=artifact_bytes(folder / artifact)),
            *(r.File(path=names[one.name], what=f"as stage {one.name} left it") for one in finished[:-1]),
            r.File(path="recipe.toml", what="what was done: fewbits train recipe.toml"),
            r.File(path=REPORT, what="this report as data"),
        ),
    )


def _scored(
    finished: Sequence[Finished], data: str, settings: EngineSettings, progress: Progress
) -> tuple[r.Metric, list[Quality]]:
    """Every file's score, and how far its outputs are from the original's."""
    samples = open_samples(data, open_model(finished[0].path).info.inputs)
    engine = yardstick("onnx")
    batch = samples.batch or BATCH
    qualities = []
    with tempfile.TemporaryDirectory(prefix="fewbits-") as scratch:
        reference = Reference(Path(scratch))
        reference.record(samples.session(engine.compile(finished[0].path, settings)), samples, batch)
        metric, subject = metric_for(Wish(), samples, reference)
        for number, one in enumerate(finished):
            progress("score", number, len(finished))
            session = samples.session(engine.compile(one.path, settings))
            qualities.append(score(session, samples, batch, reference, metric.scorer(subject)))
    told = r.Metric(
        name=metric.name,
        higher_is_better=metric.higher_is_better,
        original=qualities[0].score,
        unit=metric.unit,
        samples=qualities[0].samples,
        description=metric.description,
        against=subject.against,
    )
    return told, qualities


def _candidate(
    one: Finished,
    name: str,
    quality: Quality,
    latency: Latency,
    first: Model,
    quality_before: Quality,
    latency_before: Latency,
    metric: r.Metric,
    threads: int,
) -> r.Candidate:
    speedup = None if latency.error or latency_before.error else ratio(latency_before, latency)
    worse = quality_before.score - quality.score
    size = artifact_bytes(one.path)
    return r.Candidate(
        name=one.name,
        recipe=one.kind,
        engine="onnxruntime",
        precision="f32",
        original=one.kind == "original",
        path=name,
        sha256=hashlib.sha256(one.path.read_bytes()).hexdigest(),
        size_bytes=size,
        size_ratio=size / first.size_bytes,
        latency_ms=r.Latency(p50=latency.p50_ms, p10=latency.p10_ms, p90=latency.p90_ms),
        speedup=None if speedup is None else speedup.value,
        speedup_low=None if speedup is None else speedup.low,
        speedup_high=None if speedup is None else speedup.high,
        metric=quality.score,
        drop=worse if metric.higher_is_better else -worse,
        agreement=r.Agreement(
            top1=quality.agreement.top1,
            cosine_min=quality.agreement.cosine_min,
            sqnr_db=quality.agreement.sqnr_db,
        ),
        met=True,
        error=latency.error,
        load_ms=latency.load_ms,
        resident_bytes=latency.resident_bytes,
        threads=threads,
    )


def _verdict(candidates: Sequence[r.Candidate], metric: r.Metric) -> str:
    from fewbits.report import words

    before, after = candidates[0], candidates[-1]
    return (
        f"{len(candidates) - 1} stages: {words.size(after.size_bytes)} instead of {words.size(before.size_bytes)}, "
        f"{words.times(after.speedup)} as fast, {metric.name} {words.score(after.metric, metric)} instead of "
        f"{words.score(before.metric, metric)}."
    )
