"""Put what one run found into a Report, and the files that are handed over beside it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fewbits import __version__
from fewbits.candidates import ORIGINAL, Candidate, Written
from fewbits.choose import Choice, Limits
from fewbits.contest import spelled_out
from fewbits.damage import only, worst
from fewbits.ending import Ending
from fewbits.engines.engine import get, literal_session
from fewbits.errors import EngineError
from fewbits.fallback import Fallback
from fewbits.figures import Figures, Outcome
from fewbits.handover import REPORT
from fewbits.machine import this_machine, versions
from fewbits.measure.latency import Latency, Ratio, ratio
from fewbits.measure.metrics import Metric
from fewbits.measure.quality import Quality
from fewbits.measure.size import artifact_bytes, artifact_files, artifact_sha256
from fewbits.planning.plan import LayerPlan, Plan, WeightPlan
from fewbits.planning.recipe import Recipe, ResolvedRecipe, Rule, write_recipe
from fewbits.planning.target import WeightForm
from fewbits.report import record as r
from fewbits.report.histogram import histogram
from fewbits.report.html import render
from fewbits.scoring import Scoring, scored
from fewbits.sensitivity import error_db, outputs_of
from fewbits.signatures import Finding
from fewbits.trying import Tried

if TYPE_CHECKING:
    from fewbits.compress import Asked, Run

FORMS: dict[WeightForm, str] = {
    "cast_mul": "Cast + Mul",
    "cast_twice_mul": "Cast + Cast + Mul",
    "dequantize": "DequantizeLinear",
    "widen": "Cast + DequantizeLinear",
    "look_up": "Cast + Gather from a codebook",
}
FOLDED = "a folded form saves file, not memory"
DECODED = (
    "codebooks are decoded at load, as no engine here multiplies by their codes: that saves file, not memory"
)
IN_FRAMEWORK = "for comparison only"
SHOWN_NAMES = 6  # of what was not tried, in a note; all of them are in a list of their own
DESCRIBED_SAMPLES = 8  # are run for the error of every layer's output


def describe(
    run: Run,
    tried: Tried,
    outcomes: Sequence[Outcome],
    figures: Figures,
    choice: Choice,
    limits: Limits,
    asked: Asked,
    scoring: Scoring,
    findings: Sequence[Finding],
    folder: Path,
) -> r.Report:
    """Build the report, and fill ``folder`` with everything that is handed over."""
    saved = next((one for one in outcomes if one.candidate.name == choice.saved), None)
    metric = scoring.metric
    layers: tuple[r.Layer, ...] = ()
    left: tuple[r.LeftInFloat, ...] = ()
    shown = None
    measured: Mapping[str, tuple[float, float | None]] = {}
    files: tuple[r.File, ...] = ()
    if saved is not None:
        files = _artifacts(run, saved.candidate, folder)
        plan = saved.candidate.file.plan
        if plan is not None:
            layers = _layers(run, saved.candidate, plan)
            left = _left_in_float(run, plan)
            shown = _histogram(plan)
            measured = _alone(run, saved.candidate, plan, tried, scoring)
    report = r.Report(
        fewbits=__version__,
        machine=_machine(run),
        source=r.Source(
            path=run.model.path.name if run.origin is None else run.origin.name,
            sha256=run.model.sha256,
            size_bytes=run.model.size_bytes,
            format=run.model.format if run.origin is None else run.origin.framework,
            params=run.model.params,
            opset=run.model.opset,
            batch_axis=dict(run.feeding.batch_axis),
            state=dict(run.feeding.state),
            structure=None
            if run.origin is None or run.origin.structure is None
            else run.origin.structure.to_json(),
        ),
        metric=_metric(scoring, figures.reference, figures.original_score),
        limits=r.Limits(
            max_drop=str(asked.max_drop),
            max_size=None if asked.max_size is None else str(asked.max_size),
            min_speedup=asked.min_speedup,
            prefer=asked.prefer,
            metric_limit=None if limits.max_drop is None else figures.after(limits.max_drop),
            size_limit_bytes=limits.max_bytes,
            latency_limit_ms=None
            if not limits.min_speedup or figures.reference.latency is None
            else figures.reference.latency.p50_ms / limits.min_speedup,
        ),
        chosen=choice.chosen,
        saved=choice.saved,
        reference=figures.reference.candidate.name,
        verdict=_verdict(saved, figures, choice, metric, run, tried),
        candidates=tuple(_candidate(run, one, figures, choice, saved) for one in outcomes),
        layers=layers,
        left_in_float=left,
        sensitivity=tuple(_damages(tried, saved, measured)),
        fallbacks=tuple(_fallback(one, figures) for one in tried.fallbacks),
        signatures=_signatures(run, findings),
        bytes_by_dtype=dict(saved.candidate.file.bytes_by_dtype) if saved else {},
        bytes_by_dtype_original=dict(run.model.bytes_by_dtype()),
        histogram=shown,
        timings_s={name: round(seconds, 3) for name, seconds in run.timings.items()},
        latency_at=spelled_out(run.sample, run.threads),
        sample_shapes=_shapes(run),
        engine_settings={} if saved is None else _settings(saved.candidate),
        snippet=None
        if saved is None
        else saved.candidate.settings.snippet(run.model.artifact_name, _shapes(run)),
        files=files,
        time_budget_s=run.ending.budget_s,
        estimated_s=None if run.estimate is None else run.estimate.total_s,
        interrupted=run.ending.interrupted,
        not_tried=tuple(r.NotTried(name=name, why=_why(run.ending)) for name in tried.left),
        notes=(*_early(run.ending, tried, outcomes), *run.notes),
    )
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    (folder / "report.html").write_text(render(report), encoding="utf-8")
    return report


def _metric(scoring: Scoring, reference: Outcome, original: float) -> r.Metric:
    metric, subject = scoring.metric, scoring.subject
    return r.Metric(
        name=metric.name,
        higher_is_better=metric.higher_is_better,
        original=original,
        unit=metric.unit,
        samples=reference.quality.samples if reference.quality else None,
        description=metric.description,
        against=None if scoring.wish.of_model is not None else subject.against,
        output=None if subject.place is None else subject.outputs[subject.place],
    )


def _signatures(run: Run, findings: Sequence[Finding]) -> tuple[r.Signature, ...]:
    """The file's signatures beside the main one, in its order."""
    found = {one.judge.signature.name: _signature(one) for one in findings}
    return tuple(found.get(name, r.Signature(name=name)) for name in run.model.info.signatures[1:])


def _signature(found: Finding) -> r.Signature:
    judge, part, candidate = found.judge, found.part, found.candidate
    name, scoring = judge.signature.name, judge.scoring
    metric = _metric(scoring, judge.original, scoring.original)
    if candidate is None or candidate.file.plan is None:
        return r.Signature(name=name, metric=metric)
    both = found.original, found.latency
    speedup = None if both[0] is None or both[1] is None else ratio(both[0], both[1]).value
    return r.Signature(
        name=name,
        rounded=True,
        metric=metric,
        score=None if part is None else part.score,
        drop=None if part is None else part.drop,
        agreement=_agreement(None if part is None else part.quality),
        original_ms=None if found.original is None else found.original.p50_ms,
        latency_ms=_latency(found.latency),
        speedup=speedup,
        layers=_layers(judge.signature.run, candidate, candidate.file.plan),
    )


def _latency(found: Latency | None) -> r.Latency:
    return r.Latency() if found is None else r.Latency(p50=found.p50_ms, p10=found.p10_ms, p90=found.p90_ms)


def _agreement(quality: Quality | None) -> r.Agreement:
    if quality is None:
        return r.Agreement()
    found = quality.agreement
    return r.Agreement(top1=found.top1, cosine_min=found.cosine_min, sqnr_db=found.sqnr_db)


def _why(ending: Ending) -> str:
    return "interrupted" if ending.interrupted else "the time was over"


def _early(ending: Ending, tried: Tried, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """What to say of a run that ended early; nothing of one that did not."""
    if not ending.early:
        return ()
    if not tried.left:
        return (f"ended early: {_why(ending)}; every candidate had been tried",)
    shown = ", ".join(tried.left[:SHOWN_NAMES])
    more = f" and {len(tried.left) - SHOWN_NAMES} more" if len(tried.left) > SHOWN_NAMES else ""
    return (
        f"ended early: {_why(ending)}; {len(outcomes)} candidates were tried, and {len(tried.left)} were not: "
        f"{shown}{more}",
    )


def _fallback(found: Fallback, figures: Figures) -> r.Fallback:
    draft = found.start.candidate.file.draft
    assert draft is not None
    return r.Fallback(
        start=found.start.candidate.name,
        candidate=found.last.candidate.name,
        layers=sum(a.activations is not None and bool(a.layer.weights) for a in draft.assigned),
        steps=tuple(
            r.FallbackStep(
                layers=step.layers,
                to=step.to,
                error_db=step.error_db,
                metric=step.score,
                drop=None if step.score is None else figures.lost(step.score),
                size_bytes=step.size_bytes,
            )
            for step in found.steps
        ),
    )


def _damages(
    tried: Tried, saved: Outcome | None, measured: Mapping[str, tuple[float, float | None]]
) -> Iterator[r.Damage]:
    recipe = None if saved is None else saved.candidate.recipe
    for name, found in tried.damages.items():
        for one in found:
            output, score = measured.get(one.layer, (None, None)) if name == recipe else (None, None)
            sqnr = None if one.sqnr_db == float("inf") else one.sqnr_db
            yield r.Damage(
                recipe=name,
                layer=one.layer,
                scheme=one.scheme,
                sqnr_db=sqnr,
                output_sqnr_db=output,
                metric=score,
            )


def _alone(
    run: Run, saved: Candidate, plan: Plan, tried: Tried, scoring: Scoring
) -> dict[str, tuple[float, float | None]]:
    """The layers that hurt most of what is saved, each alone: SQNR of the model's outputs, dB, and the score."""
    model, found = saved.file.model, {}
    if run.ending.early or model is None or plan.target.codes_throughout:
        return {}
    batches = run.scoring.some(DESCRIBED_SAMPLES, 1)
    with run.stage("sensitivity"):
        expected = outputs_of(run.model.path, saved.settings, run.scoring, batches)
        for layer in plan.layers:
            if layer.name in worst(tried.damages.get(saved.recipe, ())):
                path = run.folder / f"alone.{run.model.format}"
                model.write(only(plan, layer.node), path)
                try:
                    got = outputs_of(path, saved.settings, run.scoring, batches)
                except EngineError:  # a form of this layer that the engine runs only beside others
                    continue
                score = None
                # What the user evaluates with is called for candidates alone.
                if scoring.wish.of_model is None:
                    score = scored(run, replace(saved, file=replace(saved.file, path=path)), scoring).score
                found[layer.name] = (-error_db(expected, got), score)
    return found


def _artifacts(run: Run, saved: Candidate, folder: Path) -> tuple[r.File, ...]:
    """Copy the saved file, and write the recipe that makes it again and the lines that run it."""
    for file in artifact_files(saved.file.path):
        shutil.copyfile(file, folder / file.name)
    artifact = folder / saved.file.path.name
    if artifact.name != run.model.artifact_name:
        artifact = artifact.rename(folder / run.model.artifact_name)
    (folder / "recipe.toml").write_text(write_recipe(_resolved(run, saved)), encoding="utf-8")
    lines = saved.settings.snippet(artifact.name, _shapes(run))
    inputs = ", ".join(f"{one.name!r}: ..." for one in run.model.info.inputs)
    head = f"# Runs {artifact.name} with the settings that were measured.\nfeeds = {{{inputs}}}  # numpy arrays\n"
    for output, name in run.feeding.state.items():
        head += f"# The output {output!r} is the input {name!r} of the next step.\n"
    (folder / "run.py").write_text(f"{head}{lines}\n", encoding="utf-8")
    return (
        r.File(path=artifact.name, what="the model", size_bytes=artifact_bytes(artifact)),
        r.File(path="recipe.toml", what="makes the same bytes again"),
        r.File(path="run.py", what="runs it without fewbits"),
        r.File(path=REPORT, what="this report as data"),
    )


def _resolved(run: Run, saved: Candidate) -> ResolvedRecipe:
    draft, settings = saved.file.draft, saved.settings
    if draft is None:
        keep = Recipe(ORIGINAL, (Rule("*"),), "the model as it came")
        return ResolvedRecipe(keep, settings.engine, settings.precision, None, run.seed)
    effort = run.effort if draft.recipe.learn else None
    return ResolvedRecipe(
        draft.recipe, settings.engine, settings.precision, draft.target.placement, run.seed, effort
    )


def _candidate(
    run: Run, one: Outcome, figures: Figures, choice: Choice, saved: Outcome | None
) -> r.Candidate:
    candidate, latency, quality = one.candidate, one.latency, one.quality
    file, settings = candidate.file, candidate.settings
    speedup, over_bf16 = figures.speedup(one), figures.speedup_vs_bf16(one)
    over_source = figures.speedup_vs_source(one)
    size = artifact_bytes(file.path)
    failed = choice.failed[candidate.name]
    tied = (
        saved is not None
        and saved.latency is not None
        and latency is not None
        and latency is not saved.latency
    )
    return r.Candidate(
        name=candidate.name,
        recipe=candidate.recipe,
        engine=settings.engine,
        precision=settings.precision,
        original=candidate.is_original,
        path=run.model.artifact_name if candidate.name == choice.saved else None,
        sha256=artifact_sha256(file.path),
        size_bytes=size,
        size_ratio=size / run.model.size_bytes,
        latency_ms=_latency(latency),
        speedup=None if speedup is None else speedup.value,
        speedup_low=None if speedup is None else speedup.low,
        speedup_high=None if speedup is None else speedup.high,
        speedup_vs_bf16=None if over_bf16 is None else over_bf16.value,
        speedup_vs_source=None if over_source is None else over_source.value,
        metric=one.score,
        drop=figures.drop(one),
        agreement=_agreement(quality),
        met=None if one.error is not None or one.score is None else not failed,
        failed=failed,
        error=one.error,
        note=IN_FRAMEWORK if candidate.in_framework else None,
        tied=tied and _tied(one, saved),
        load_ms=None if latency is None else latency.load_ms,
        resident_bytes=None if latency is None else latency.resident_bytes,
        throughput=tuple(r.Throughput(**vars(part)) for part in one.throughput),
        threads=settings.threads,
        weight_form=_form(file),
        folded=_folded(file),
        settings=_settings(candidate),
    )


def _tied(one: Outcome, saved: Outcome | None) -> bool:
    if saved is None or saved.latency is None or one.latency is None:
        return False
    return abs(one.latency.p50_ms / saved.latency.p50_ms - 1) <= 0.03


def _settings(candidate: Candidate) -> dict[str, str]:
    return {key: str(value) for key, value in vars(candidate.settings).items()}


def _form(file: Written) -> str | None:
    """How the weights are written, in words."""
    if file.plan is None:
        return None
    forms: Counter[str] = Counter()
    for layer in file.plan.layers:
        for weight in layer.weights:
            forms[_form_of(file.plan, layer, weight)] += 1
    return ", ".join(form for form, _ in forms.most_common())


def _form_of(plan: Plan, layer: LayerPlan, weight: WeightPlan) -> str:
    if weight.codes is None:
        return f"{weight.scheme.qtype} + Cast"
    if layer.op == "Gather":
        return "Gather codes, then " + ("scale" if weight.codes.codebook is None else "look up their entries")
    if layer.dynamic:
        return "DynamicQuantizeLSTM" if layer.op == "LSTM" else "MatMulInteger"
    return "QDQ" if layer.static else FORMS[plan.form(layer, weight)]


def _folded(file: Written) -> str | None:
    """What becomes of the weights where an engine unfolds them."""
    form = _form(file) or ""
    if FORMS["look_up"] in form:
        return DECODED
    return FOLDED if "Cast" in form else None


def _layers(run: Run, candidate: Candidate, plan: Plan) -> tuple[r.Layer, ...]:
    errors = _output_errors(run, candidate.file)
    infos = {layer.name: layer for layer in run.model.info.layers}
    described = []
    for layer in plan.layers:
        info = infos[layer.name]
        stored = [
            weight.codes.nbytes if weight.codes is not None else 2 * weight.values.size
            for weight in layer.weights
        ]
        described.append(
            r.Layer(
                name=layer.name,
                op=layer.op,
                scheme=layer.scheme,
                bits=_bits(layer),
                params=info.params,
                bytes=sum(stored) if layer.weights else 4 * info.params,
                weight_sqnr_db=_weight_sqnr(layer),
                output_sqnr_db=errors.get(layer.name),
                shape=info.weights[0].shape if info.weights else None,
                why=layer.float_reason or layer.note,
            )
        )
    return tuple(described)


def _bits(layer: LayerPlan) -> int | None:
    if not layer.weights:
        return 32 if layer.float_reason else None
    first = layer.weights[0]
    return 16 if first.codes is None else first.codes.qtype.bits


def _weight_sqnr(layer: LayerPlan) -> float | None:
    import torch

    from fewbits.models.onnx.encode import narrow

    signal = noise = 0.0
    for weight in layer.weights:
        values = weight.values.astype(np.float64)
        now = weight.codes.dequantize(torch.float32).numpy() if weight.codes is not None else narrow(weight)
        signal += float(np.square(values).sum())
        noise += float(np.square(values - now.astype(np.float64)).sum())
    return 10 * np.log10(signal / noise) if noise and signal else None


def _output_errors(run: Run, file: Written) -> Mapping[str, float]:
    """SQNR of every layer's output in the saved file, dB, errors of the layers before it included."""
    tapped, plain = (run.folder / f"{name}.{run.model.format}" for name in ("tapped", "plain"))
    model = file.model
    assert model is not None
    names = model.layer_outputs(file.path, tapped)
    originals = {layer.name: layer.output for layer in model.info.layers}
    model.tapped([originals[name] for name in names], plain)
    sessions = [run.scoring.session(literal_session(one, run.threads)) for one in (plain, tapped)]
    signal: Counter[str] = Counter()
    noise: Counter[str] = Counter()
    for feeds in run.scoring.some(DESCRIBED_SAMPLES, DESCRIBED_SAMPLES):
        expected, got = (session.run(feeds) for session in sessions)
        for layer, name in names.items():
            a, b = expected[originals[layer]].astype(np.float64), got[name].astype(np.float64)
            if a.shape == b.shape:
                signal[layer] += float(np.square(a).sum())  # type: ignore[assignment]
                noise[layer] += float(np.square(a - b).sum())  # type: ignore[assignment]
    return {
        layer: float(10 * np.log10(max(signal[layer], 1e-30) / noise[layer]))
        for layer in noise
        if noise[layer]
    }


def _left_in_float(run: Run, plan: Plan) -> tuple[r.LeftInFloat, ...]:
    """Layers that the plan leaves in float, and operators that no plan touches."""
    reasons: Counter[tuple[str, str]] = Counter()
    touched: Counter[str] = Counter()
    for layer in plan.layers:
        if layer.float_reason is not None:
            reasons[layer.op, layer.float_reason] += 1
        elif not layer.weights and not layer.static:
            reasons[layer.op, "multiplies two activations, which this recipe leaves in float"] += 1
        touched[layer.op] += 1
    for op, count in run.model.operators().items():
        rest = count - touched[op]
        if rest and op in COMPUTING:
            reasons[op, COMPUTING[op]] += rest
    return tuple(r.LeftInFloat(op=op, count=count, why=why) for (op, why), count in reasons.most_common())


_NO_WEIGHTS = "has no weights; engines run it in float, or fuse it with its neighbour"
_SENSITIVE = "needs the range and precision of float"
COMPUTING = {
    **dict.fromkeys(
        ("Relu", "Clip", "Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "HardSwish"), _NO_WEIGHTS
    ),
    **dict.fromkeys(
        ("AveragePool", "GlobalAveragePool", "MaxPool", "ReduceMean", "Gelu", "Erf"), _NO_WEIGHTS
    ),
    **dict.fromkeys(
        ("Softmax", "LayerNormalization", "BatchNormalization", "InstanceNormalization"), _SENSITIVE
    ),
    **dict.fromkeys(("Exp", "Sqrt", "Pow", "ReduceSum", "Reciprocal", "GroupNormalization"), _SENSITIVE),
}
"""Operators that compute in float, and why they are left so; those that only move or index values are not listed."""


def _histogram(plan: Plan) -> r.Histogram | None:
    """The layer whose weights lost most, before and after."""
    worst = min(
        (layer for layer in plan.layers if layer.weights and layer.weights[0].codes is not None),
        key=lambda layer: _weight_sqnr(layer) or float("inf"),
        default=None,
    )
    if worst is None:
        return None
    weight = worst.weights[0]
    assert weight.codes is not None
    return histogram(worst.name, weight.values, weight.codes.dequantize().numpy(), "its weights lost most")


def _verdict(
    saved: Outcome | None, figures: Figures, choice: Choice, metric: Metric, run: Run, tried: Tried
) -> str:
    if saved is None:
        return "No candidate could be measured and scored; nothing but this report was written."
    speedup = figures.speedup(saved)
    times = "" if speedup is None else f", {_speed(speedup)}"
    drop = figures.drop(saved)
    lost = "" if drop is None else f", {_lost(drop, metric)}"
    name = saved.candidate.name
    if choice.chosen is None:
        which = "No candidate that was tried" if tried.left else "No candidate"
        return f"{which} meets the limits; the best so far is {name}: {'; '.join(choice.failed[name])}."
    if saved.candidate.is_original:
        origin = run.origin
        where = f"{saved.candidate.settings.engine} at {saved.candidate.settings.precision}"
        what = "original file" if origin is None else f"original, exported from {origin.framework},"
        advice = "Do not quantize"
        if tried.left:
            some = any(not one.candidate.is_original for one in tried.outcomes)
            advice = "Nothing that was tried is better" if some else "Nothing but the original was tried"
        return f"{advice}: run the {what} in {where}{times}{lost}."
    share = artifact_bytes(saved.candidate.file.path) / artifact_bytes(figures.reference.candidate.file.path)
    return f"Take {name}: {share:.0%} of the bytes{times}{lost}."


def _speed(speedup: Ratio) -> str:
    return "as fast as float32" if speedup.tie else f"{speedup.value:.2f} times as fast as float32"


def _lost(drop: float, metric: Metric) -> str:
    if drop == 0:
        return "with the same score"
    amount = f"{abs(drop):.2f}" if metric.unit == "%" else f"{abs(drop):.3g}"
    if metric.higher_is_better:
        return f"{'losing' if drop > 0 else 'gaining'} {amount}{metric.unit_of_drops} of the score"
    way = "higher" if drop > 0 else "lower"
    return f"with a score {amount}{metric.unit_of_drops} {way} (lower is better)"


def _shapes(run: Run) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in run.sample.items()}


def _machine(run: Run) -> r.Machine:
    engines = dict(run.engines)
    if run.origin is not None and run.origin.program is not None:
        engines[run.origin.framework] = get(run.origin.framework)
    return this_machine(run.cpu, run.threads, versions(engines))
